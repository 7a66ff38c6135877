"""A damaged or absent warehouse: every verb says which file it is and what to do, and none shows a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import call
from tests.flows.shop import event, open_shop, run_once, write_events
from warehouse.errors import CorruptWarehouse
from warehouse.status import warehouse_status


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop after one run, with new events waiting."""
    folder = tmp_path_factory.mktemp("finished")
    run_once(open_shop(folder))
    write_events(folder, "-new", [event(u, n % 5, 100 + n) for u in range(4) for n in range(6)])
    return folder


@pytest.fixture
def shop(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished shop, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "shop")) / "lorestream.toml"


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def damage_one(shop: Path, table: str, damage: Callable[[Path], None]) -> Path:
    """The file of `table` that was damaged."""
    file = sorted((shop.parent / "warehouse" / table).rglob("*.parquet"))[0]
    damage(file)
    return file


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
@pytest.mark.parametrize("table", ["behaviours", "items", "partitions", "requests", "open"])
def test_a_dry_run_names_the_damaged_file(
    shop: Path, capfd: pytest.CaptureFixture[str], table: str, damage: Callable[[Path], None]
) -> None:
    file = damage_one(shop, table, damage)
    assert call(["run", "--dry-run", "--config", str(shop)]) == 1
    message = capfd.readouterr().err
    assert f"lorestream: {file} " in message
    assert "backup" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("table", ["behaviours", "items", "partitions", "requests", "knowledge"])
def test_status_names_the_damaged_file(shop: Path, capfd: pytest.CaptureFixture[str], table: str) -> None:
    file = damage_one(shop, table, cut_short)
    assert call(["status", "--config", str(shop)]) == 1
    assert f"lorestream: {file} cannot be read as Parquet" in capfd.readouterr().err


@pytest.mark.parametrize("table", ["knowledge", "embeddings", "features"])
def test_a_run_names_the_damaged_file(shop: Path, table: str) -> None:
    file = damage_one(shop, table, cut_short)
    with pytest.raises(CorruptWarehouse, match=rf"{file} .*from a backup"):
        run_once(shop)


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
@pytest.mark.parametrize("table", ["knowledge", "embeddings"])
def test_what_was_lost_is_told_and_made_again_once_it_was_given_up(
    shop: Path, capfd: pytest.CaptureFixture[str], table: str, damage: Callable[[Path], None]
) -> None:
    before = run_once(shop)
    calls, texts = warehouse_status(before.root)["knowledge"], before.report.texts_encoded
    file = damage_one(shop, table, damage)
    with pytest.raises(CorruptWarehouse, match=rf"{file} .*lorestream gc --forget-lost"):
        run_once(shop)
    assert call(["gc", "--forget-lost", "--json", "--config", str(shop)]) == 0
    assert json.loads(capfd.readouterr().out)["forgotten"] == [str(file)]
    again = run_once(shop)
    assert warehouse_status(again.root)["knowledge"] == calls
    assert again.report.calls > 0 if table == "knowledge" else again.report.texts_encoded > 0
    assert (again.report.calls, texts) != (calls, 0), "only what was lost is made again"


def test_a_lost_manifest_is_named(shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (shop.parent / "warehouse" / "features" / "manifest.json").unlink()
    for verb in (["status"], ["snapshots"], ["rollback", "x"]):
        assert call([*verb, "--config", str(shop)]) == 1
        assert "manifest.json is missing" in capfd.readouterr().err
    with pytest.raises(CorruptWarehouse, match=r"manifest\.json is missing"):
        run_once(shop)


@pytest.mark.parametrize("place", ["nowhere", "inputs/items.parquet"])
@pytest.mark.parametrize("verb", [["status"], ["snapshots"], ["rollback", "x"], ["run", "--dry-run"]])
def test_where_there_is_no_warehouse_none_is_made(
    shop: Path, capfd: pytest.CaptureFixture[str], verb: list[str], place: str
) -> None:
    shop.write_text(shop.read_text().replace('warehouse = "warehouse"', f'warehouse = "{place}"'))
    assert call([*verb, "--config", str(shop)]) == 2
    assert f"There is no warehouse at {shop.parent / place}." in capfd.readouterr().err
    assert not (shop.parent / "nowhere").exists()


def test_an_unknown_snapshot_points_to_the_verb_that_lists_them(shop: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["rollback", "x", "--config", str(shop)]) == 2
    assert "See `lorestream snapshots`." in capfd.readouterr().err
