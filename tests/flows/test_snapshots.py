"""The verbs that keep the warehouse in order, on a shop after two runs."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lorestream
from adapters.touched import touched_since
from flows import stages
from flows.cli import call
from flows.compact import merge_small_files
from flows.config import load_config
from flows.run import Run
from tests.flows.shop import event, open_run, open_shop, run_once, scripted_engine, write_events
from warehouse.errors import WriterBusy
from warehouse.fitness import UnfitFeatures
from warehouse.lock import writer_lock
from warehouse.snapshot import read_manifest
from warehouse.status import warehouse_status


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop after two runs: four users with two partitions each, then one partition more."""
    folder = tmp_path_factory.mktemp("finished")
    run_once(open_shop(folder))
    write_events(folder, "-new", [event(0, n % 5, 100 + n) for n in range(2)])
    run_once(folder / "lorestream.toml")
    return folder


@pytest.fixture
def shop(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "shop")) / "lorestream.toml"


Verb = Callable[..., dict[str, object]]


@pytest.fixture
def verb(shop: Path, capfd: pytest.CaptureFixture[str]) -> Verb:
    """`verb("gc", "--dry-run")`: what the command prints as JSON."""

    def run(*words: str) -> dict[str, object]:
        assert call([*words, "--json", "--config", str(shop)]) == 0
        found: dict[str, object] = json.loads(capfd.readouterr().out)
        return found

    return run


def ids(shop: Path) -> list[str]:
    return [s.snapshot_id for s in read_manifest(load_config(shop).root).listed]


def test_snapshots_are_listed_compared_and_pinned(shop: Path, verb: Verb) -> None:
    empty, first, second = ids(shop)
    listed = verb("snapshots")["snapshots"]
    assert isinstance(listed, list)
    assert [(s["snapshot_id"], s["user_features"], s["files"], s["current"], s["pinned"]) for s in listed] == [
        (empty, 0, 0, False, False),
        (first, 8, 2, False, False),
        (second, 9, 3, True, False),
    ]
    users = verb("snapshots", "diff", first)["user_features"]
    assert isinstance(users, dict)
    assert (users["added"], users["changed"], users["removed"]) == (1, 0, 0)
    assert users["coverage"]["new"]["own"] == 1.0
    assert users["drift"]["mean_moved"] > 0
    assert verb("snapshots", "diff", second, first)["old"] == second
    assert verb("snapshots", "pin", first) == {"snapshot_id": first, "pinned": True}
    assert read_manifest(load_config(shop).root).pinned == {first}
    assert verb("snapshots", "unpin", first) == {"snapshot_id": first, "pinned": False}
    assert read_manifest(load_config(shop).root).pinned == frozenset()


@pytest.mark.parametrize("words", [["snapshots", "diff", "x"], ["snapshots", "pin", "x"], ["snapshots", "unpin", "x"]])
def test_an_unknown_snapshot_is_named(shop: Path, capfd: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert call([*words, "--config", str(shop)]) == 2
    assert "There is no snapshot `x`" in capfd.readouterr().err


def test_compaction_changes_no_row_and_the_next_runs_do_what_they_would_have_done(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(shop)
    events = pq.read_table(shop.parent / "inputs" / "behaviours.parquet")
    before = lorestream.open(config.root).join(events).to_arrow()
    report = merge_small_files(config)
    assert (report["merged"], report["files_after"]) == (2, {"user_features": 1, "item_features": 1})
    # The first run sealed partitions in two buckets, the second one of a user more; items it found as they were.
    assert report["internal"] == {
        "behaviours": {"before": 2, "after": 1},
        "partitions": {"before": 3, "after": 1},
        "requests": {"before": 2, "after": 1},
        "knowledge": {"before": 2, "after": 1},
        "embeddings": {"before": 2, "after": 1},
    }
    assert lorestream.open(config.root).join(events).to_arrow().equals(before)
    looked_at: list[pa.Table | None] = []

    def touched(*arguments: Any) -> pa.Table | None:
        looked_at.append(touched_since(*arguments))
        return looked_at[-1]

    monkeypatch.setattr(stages, "touched_since", touched)
    again = run_once(shop).report
    assert (again.calls, again.rows_published, again.snapshot) == (0, 0, report["snapshot"])
    write_events(shop.parent, "-later", [event(1, n % 5, 200 + n) for n in range(2)])
    later = run_once(shop).report
    assert (later.calls, later.rows_by_table) == (1, {"user_features": 1})
    assert [None if table is None else table["entity_id"].to_pylist() for table in looked_at] == [[], ["u1"]]


def test_a_compaction_waits_for_another_writer_if_told(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(shop)
    caplog.set_level(logging.INFO, logger="lorestream")
    with ThreadPoolExecutor(1) as threads:
        with writer_lock(config.root, "a long run"):
            with pytest.raises(WriterBusy, match="a long run"):
                merge_small_files(config)
            waiting = threads.submit(merge_small_files, config, 60.0)
            while "waiting up to 60 s for a long run" not in caplog.text and not waiting.done():
                time.sleep(0.01)
        assert waiting.result()["merged"] == 2


def test_collection_leaves_a_warehouse_that_runs_on(shop: Path, verb: Verb) -> None:
    root = load_config(shop).root
    shop.write_text(shop.read_text() + "[snapshots]\nkeep = 1\n")
    second = ids(shop)[-1]
    orphan = root / "requests" / "killed.parquet"
    shutil.copy(next((root / "requests").glob("*.parquet")), orphan)
    held = verb("gc")
    assert (held["files"], held["snapshots_expired"]) == (0, [])
    assert isinstance(held["snapshots_retired"], list)
    assert len(held["snapshots_retired"]) == 2
    planned, done = verb("gc", "--dry-run", "--grace-hours", "0"), verb("gc", "--grace-hours", "0")
    assert {**planned, "dry_run": False} == done
    assert ids(shop) == [second]
    assert not orphan.exists()
    # Open partitions that the second run superseded go; the expired snapshots' files belong to the current one too.
    assert done["by_reason"].keys() == {"superseded", "in no commit", "inputs of no snapshot"}  # type: ignore[attr-defined]
    assert len(lorestream.open(root).table("user_features")) == 9
    write_events(shop.parent, "-later", [event(1, n % 5, 200 + n) for n in range(2)])
    assert run_once(shop).report.rows_by_table == {"user_features": 1}


def test_a_publication_that_fails_its_checks_leaves_the_snapshot_and_the_knowledge(shop: Path) -> None:
    root, plain = load_config(shop).root, shop.read_text()
    current = ids(shop)[-1]
    write_events(shop.parent, "-later", [event(1, n % 5, 200 + n) for n in range(2)])
    shop.write_text(plain + "[checks]\nmax_norm = 0.000001\n")
    with pytest.raises(UnfitFeatures, match=r"norm outside \[0, 1e-06\].*current snapshot stays"):
        run_once(shop)
    assert lorestream.open(root).current_snapshot == current
    # The answer was paid for and is there: with the check mended it is published without a call.
    assert warehouse_status(root)["requests_pending"] == 0
    shop.write_text(plain)
    mended = run_once(shop).report
    assert (mended.calls, mended.rows_by_table) == (0, {"user_features": 1})


def test_a_new_adapter_may_not_drop_rows_unless_told(shop: Path) -> None:
    root = load_config(shop).root
    shop.write_text(shop.read_text().replace("out_dim = 4", "out_dim = 3"))
    stages.adapt(open_run(shop))
    # Another length of vectors replaces all rows, and of the prompts of this scenario none is answered yet.
    shop.write_text(shop.read_text() + '[prompts]\nscenario = "books"\n')
    with pytest.raises(UnfitFeatures, match=r"would show 0 rows .* instead of 9.*--allow-fewer-rows"):
        stages.publish(open_run(shop))
    assert len(lorestream.open(root).table("user_features")) == 9
    told = Run(load_config(shop, {"checks.max_row_fall": 1.0}), root, None, scripted_engine())
    stages.publish(told)
    assert len(lorestream.open(root).table("user_features")) == 0
