"""A publication that looks only at what is new leaves out nothing that a look at everything would find."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

import lorestream
from adapters import rows
from adapters.knowledge import EntityVectors
from adapters.rows import missing_rows
from adapters.training import find_adapter
from augment.engine.scripted import ScriptedEngine
from flows.run import Run
from tests.flows.shop import event, open_shop, run_once, write_events, write_items
from warehouse.garbage import collect_garbage
from warehouse.schemas import FEATURES
from warehouse.snapshot import read_manifest

MIXED = """
[knowledge]
mode = "mixed"
[groups]
min_size = 1
max_users = 2
max_items = 3
rank = 2
"""


def left_out(run: Run) -> dict[str, int]:
    """How many rows by table a look at everything would still publish."""
    adapter = find_adapter(run.root, run.encoder.encoder_id, run.config.adapter.out_dim)
    current = read_manifest(run.root).current_snapshot()
    assert adapter is not None
    assert current is not None
    published = {table: current.files(run.root, table) for table in FEATURES}
    missing = missing_rows(run.stored, adapter, published, run.clock())
    return {table: sum(piece.num_rows for piece in pieces) for table, pieces in missing.items()}


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the entities whose vectors publications read, as they come."""
    seen: list[str] = []
    original: Callable[..., EntityVectors] = rows._unpublished

    def watched(piece: EntityVectors, *rest: object) -> EntityVectors:
        seen.extend(piece.rows.column("entity_id").to_pylist())
        return original(piece, *rest)

    monkeypatch.setattr(rows, "_unpublished", watched)
    return seen


def test_only_entities_that_something_new_speaks_of_are_looked_at(tmp_path: Path, looked_at: list[str]) -> None:
    shop = open_shop(tmp_path, users=6)
    run_once(shop)
    assert len(set(looked_at)) == 6 + 5
    looked_at.clear()
    run_once(shop)
    assert looked_at == []
    write_events(tmp_path, "-day2", [event(2, n, 100 + n) for n in range(2)])
    write_items(tmp_path, [f"Quiet Lamp {n}" for n in range(6)])
    run = run_once(shop)
    assert run.report.rows_by_table == {"user_features": 1, "item_features": 1}
    assert set(looked_at) == {"u2", "i5"}
    assert left_out(run) == {"user_features": 0, "item_features": 0}


@pytest.mark.parametrize("mode", ["individual", "mixed"])
@pytest.mark.slow
def test_whatever_happened_nothing_is_left_out(tmp_path: Path, mode: str) -> None:
    shop = open_shop(tmp_path, users=6)
    plain = shop.read_text() + (MIXED if mode == "mixed" else "")
    shop.write_text(plain)

    def check(scripted: ScriptedEngine | None = None) -> None:
        run = run_once(shop, scripted)
        assert left_out(run) == {"user_features": 0, "item_features": 0}

    check(ScriptedEngine(lambda prompt: "" if "Quiet Lamp 1" in prompt else f"About {len(prompt)} lamps."))
    write_events(tmp_path, "-day2", [event(0, n, 100 + n) for n in range(2)] + [event(7, n, 100 + n) for n in range(5)])
    check()
    # Other prompts, which are answered, and back again.
    shop.write_text(plain + '[prompts]\nscenario = "books"\n')
    check()
    write_items(tmp_path, [f"Quiet Lamp {n}" for n in range(4)] + ["Loud Lamp"])
    shop.write_text(plain)
    check()
    # A record of inputs that is lost costs a look at everything.
    for path in (tmp_path / "warehouse" / "features" / "inputs").glob("*.json"):
        path.unlink()
    write_events(tmp_path, "-day3", [event(1, n, 300 + n) for n in range(3)])
    check()


def test_records_of_inputs_go_with_their_snapshots(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    run = run_once(shop)
    again = run_once(shop)
    folder = run.root / "features" / "inputs"
    assert {path.name for path in folder.iterdir()} == {f"{run.name}.json", f"{again.name}.json"}
    settings = run.config.snapshots
    collect_garbage(run.root, keep=settings.keep, grace=settings.grace, now=run.clock())
    assert [path.name for path in folder.iterdir()] == [f"{run.name}.json"]
    assert isinstance(lorestream.open(run.root).table("user_features").to_arrow(), pa.Table)
