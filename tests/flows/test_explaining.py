"""Explanations over whole runs: the row of the join, and texts whose digest is the one that the row names."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lorestream
from augment.engine.scripted import ScriptedEngine
from flows.cli import call
from flows.config import load_config
from flows.explaining import as_page
from tests.flows.shop import START, event, open_shop, run_once, write_events, write_items
from warehouse.errors import UsageError
from warehouse.reader import Warehouse

GROUPS = "[groups]\nmin_size = 1\nmax_users = 2\nmax_items = 2\nfeatures = 'cooccurrence'\n"
CASCADE = "[knowledge]\ncascade = 'shift'\n"


def shop_with(folder: Path, settings: str = "", users: int = 2, items: int = 4) -> Path:
    """A shop where every user has sealed partitions of 2 and 3 events and has one event open."""
    shop = open_shop(folder, users=users, events_each=6, items=items)
    shop.write_text(shop.read_text() + settings)
    return shop


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop after one run, where u0 rates i2 twice in partition 1, and u1 rates i3 in it and again as it is sealed."""
    shop = shop_with(tmp_path_factory.mktemp("shop"), CASCADE)
    write_events(shop.parent, "-again", [event(0, 2, 3), event(1, 3, 4)])
    run_once(shop)
    return shop


def opened(shop: Path) -> Warehouse:
    return lorestream.open(load_config(shop).root)


def explanations(warehouse: Warehouse) -> Iterator[dict[str, Any]]:
    """Of every row that is ever seen, at the first moment of it."""
    for side in ("user", "item"):
        rows = warehouse.table(f"{side}_features", [f"{side}_id", "valid_from"]).to_arrow().to_pylist()
        for entity, valid_from in sorted({(row[f"{side}_id"], row["valid_from"]) for row in rows}):
            names: Any = {side: entity}
            yield warehouse.explain(valid_from + timedelta(microseconds=1), **names)


def unusable_in_part(prompt: str) -> str:
    """No answer about second partitions, nor about items once they are called silent."""
    return "" if prompt.count("stars") == 3 or "Silent" in prompt else f"Likes {len(prompt)} lamps."


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (CASCADE, unusable_in_part),
        pytest.param("[knowledge]\nmode = 'collective'\n" + GROUPS, None, marks=pytest.mark.slow),
        ("[knowledge]\nmode = 'mixed'\n[budget]\nmax_calls = 12\n" + GROUPS, unusable_in_part),
    ],
    ids=["individual", "collective", "mixed"],
)
def test_every_row_of_a_run_is_traced_to_the_texts_that_its_digest_names(
    tmp_path: Path, settings: str, answer: Any
) -> None:
    shop = shop_with(tmp_path, settings)
    run_once(shop, None if answer is None else ScriptedEngine(answer))
    write_events(tmp_path, "-later", [event(1, n, 50 + n) for n in range(2)] + [event(7, n, 50 + n) for n in range(2)])
    write_items(tmp_path, ["Quiet Lamp 0", "Silent Lamp 1", "Quiet Lamp 2", "Quiet Lamp 3"])
    run_once(shop, None if answer is None else ScriptedEngine(answer))
    found = list(explanations(opened(shop)))
    assert {"user_id", "item_id"} <= {key for made in found for key in made}
    for made in found:
        assert made["traced"], made
        used = [text for text in made["texts"] if text["used"]]
        assert bool(used) == (made["row"]["augment"] is not None)
        assert bool(made["groups"]) == (made["row"]["rung"] in ("group", "global"))
        assert all(text["status"] == "ok" for text in used)
        assert all(text["answered_at"] <= made["row"]["created_at"] for text in made["texts"])
        assert all(f"group     {group['kind']}" in as_page(made) for group in made["groups"])


def test_the_explained_row_is_the_joined_row_by_both_clocks(published: Path) -> None:
    warehouse = opened(published)
    now = warehouse.snapshot.created_at
    moments = [START + timedelta(hours=hour) for hour in range(0, 10, 2)] + [now - timedelta(seconds=1), now]
    for clock in ("event", "known"):
        shown = pa.table({"user_id": ["u1"] * len(moments), "ts": pa.array(moments, pa.timestamp("us", "UTC"))})
        joined = warehouse.join(shown, item=None, clock=clock, fill="null").to_arrow()  # type: ignore[arg-type]
        rows = [warehouse.explain(at, user="u1", clock=clock)["row"] for at in moments]  # type: ignore[arg-type]
        assert [row and row["augment"] for row in rows] == joined["user_augment"].to_pylist()
        assert [row and row["valid_from"] for row in rows] == joined["user_valid_from"].to_pylist()
    assert [row is None for row in rows] == [True] * 6 + [False]


def test_events_prompts_and_adapter_behind_a_value_are_told(published: Path) -> None:
    warehouse = opened(published)
    found = warehouse.explain(START + timedelta(hours=4, seconds=1), user="u0")
    assert found["traced"]
    assert [partition["partition_no"] for partition in found["partitions"]] == [0, 1]
    told = [event for partition in found["partitions"] for event in partition["events"]]
    assert [(e["item_id"], e["ts"], e["value"]) for e in told] == [
        (f"i{item}", START + timedelta(hours=hour), 5.0) for item, hour in ((0, 0), (1, 1), (2, 2), (2, 3), (3, 3))
    ]
    assert told[0]["title"] == "Quiet Lamp 0"
    # What cannot be told from an equal event outside the partition has no time.
    [_, other] = warehouse.explain(START + timedelta(hours=5), user="u1")["partitions"]
    assert [(e["item_id"], e["ts"] and e["ts"].hour) for e in other["events"]] == [("i3", None), ("i0", 3), ("i1", 4)]
    assert [(text["kind"], text["partition_no"]) for text in found["texts"]] == [
        ("user_summary", 0),
        ("user_summary", 1),
        ("user_shift", 1),
    ]
    assert all("Quiet Lamp" in text["prompt"] for text in found["texts"][:2])
    [folder] = (warehouse.root / "adapters").iterdir()
    meta = json.loads((folder / "meta.json").read_bytes())
    assert found["adapter"]["folder"] == f"adapters/{folder.name}"
    assert (found["adapter"]["version"], found["adapter"]["kind"]) == (meta["version"], meta["kind"])
    item = warehouse.explain(START, item="i1")
    assert (item["version"]["title"], item["version"]["attributes"]) == ("Quiet Lamp 1", {"genres": ["drama"]})


def test_what_was_answered_later_is_no_part_of_an_older_row(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, users=1)
    run_once(shop)
    first = opened(shop)
    before = first.explain(START + timedelta(days=1), user="u0")
    shop.write_text(shop.read_text() + "[prompts]\nscenario = 'books'\n")
    run_once(shop)
    old = opened(shop).explain(START + timedelta(days=1), user="u0", snapshot=first.current_snapshot)
    assert old == before
    new = opened(shop).explain(START + timedelta(days=1), user="u0")
    assert new["traced"]
    assert {t["request_key"] for t in new["texts"]}.isdisjoint(t["request_key"] for t in old["texts"])


def test_a_copy_of_the_public_tables_says_that_the_rest_is_elsewhere(published: Path, tmp_path: Path) -> None:
    shutil.copytree(opened(published).root / "features", tmp_path / "features")
    found = lorestream.open(tmp_path).explain(START + timedelta(days=1), user="u0")
    assert found["row"]["augment"] is not None
    assert not found["traced"]
    assert "only the public tables are here" in found["notes"][0]
    assert found["adapter"] == {"version": found["row"]["adapter_version"]}


def test_the_command_tells_it_as_json_and_as_a_page(published: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ["explain", "--at", "2025-01-01T05:00:00", "--config", str(published)]
    assert call([*asked, "--user", "u0", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["user_id"], found["row"]["partition_no"], found["traced"]) == ("u0", 1, True)
    assert call([*asked, "--user", "u0"]) == 0
    page = capfd.readouterr().out
    for words in (
        "user u0 at 2025-01-01 05:00:00",
        "partition 1, 2025-01-01 02:00:00",
        "Quiet Lamp 2",
        "in the vector",
    ):
        assert words in page
    assert call([*asked, "--item", "i1"]) == 0
    assert "version   Quiet Lamp 1" in capfd.readouterr().out
    assert call([*asked, "--user", "nobody"]) == 0
    assert "no row of 'nobody'" in capfd.readouterr().out
    assert call(["explain", "--user", "u0", "--at", "2025-01-01T01:00:00", "--config", str(published)]) == 0
    assert "the first row is seen from 2025-01-01T01:00:00.000001+00:00 on" in capfd.readouterr().out
    assert call(asked) == 2
    assert "name exactly one of them" in capfd.readouterr().err


def test_a_clock_that_does_not_exist_is_refused(published: Path) -> None:
    with pytest.raises(UsageError, match=r"clock='wall'.* event, known"):
        opened(published).explain(START, user="u0", clock="wall")  # type: ignore[arg-type]


def test_a_moment_may_be_text_and_what_is_none_is_refused(published: Path) -> None:
    at = START + timedelta(days=1)
    assert opened(published).explain(at.isoformat(), user="u0") == opened(published).explain(at, user="u0")
    for given in ("yesterday", 7, None):
        with pytest.raises(UsageError, match=rf"ts = {given!r} is no moment"):
            opened(published).explain(given, user="u0")  # type: ignore[arg-type]
