"""A shop whose warehouse lives on an object store: machines come and go, and no finished call is paid for twice."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
import pytest

import lorestream
from flows import refresh as refreshing
from flows.backfill import backfill
from flows.cli import call
from flows.compact import merge_small_files
from flows.config import load_config
from flows.erase import erase_entities
from flows.garbage import remove_garbage
from flows.setup import prepare_warehouse
from tests.byte_scan import files_with
from tests.faults.schedules import content
from tests.flows.conftest import ROOT
from tests.flows.erased_shop import ITEM, ITEM_WORDS, USER, USER_WORDS, open_erased_shop, stored_rows
from tests.flows.flow_processes import TASKS
from tests.flows.shop import START, WEIGHTS, QuickEncoder, scripted_engine
from tests.flows.store_nights import NIGHTS, SEGMENT, begin_night, billed, new_machine, run_night
from tests.object_stores import DyingObjects, Killed
from warehouse.erase import erasures
from warehouse.errors import StoreUnavailable, WarehouseNotFound
from warehouse.lease import lease
from warehouse.lock import LOCK_NAME, TURN_NAME
from warehouse.numbered import newest
from warehouse.objects import FsspecObjects
from warehouse.status import warehouse_status
from warehouse.storeindex import Index, newest_index
from warehouse.workingcopy import FOLDERS, RECORD_NAME

Tables = dict[str, list[str]]


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/warehouse"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Tables]:
    """The tables after each night of a machine without a store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = new_machine(folder, None)
    prepare_warehouse(load_config(config).root)
    tables = []
    for night in range(NIGHTS):
        begin_night(config, night)
        run_night(config, folder / "bill")
        tables.append(content(load_config(config).root))
    return tables


def initialised(folder: Path, url: str) -> Path:
    """The config file of a machine that has filled the store with an empty warehouse."""
    config = new_machine(folder, url)
    prepare_warehouse(load_config(config).root)
    assert call(["sync", "--config", str(config), "--json"]) == 0
    return config


def index_of(url: str) -> Index:
    """What the store holds now."""
    index = newest_index(FsspecObjects(url), url)
    assert index is not None
    return index


def download(url: str, into: Path) -> Path:
    """Every object of a store, as files."""
    objects = FsspecObjects(url)
    for folder in (*FOLDERS, "index", "lease"):
        for name in objects.sizes(folder):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            objects.fetch(name, into / name)
    return into


def test_every_night_on_a_machine_of_its_own_gives_the_same_tables_and_no_second_call(
    tmp_path: Path, store_url: str, undisturbed: list[Tables]
) -> None:
    bill = tmp_path / "bill"
    first = new_machine(tmp_path / "first", store_url)
    with pytest.raises(WarehouseNotFound):
        run_night(first, bill)
    prepare_warehouse(load_config(first).root)
    run_night(first, bill)
    shutil.rmtree(load_config(first).root)
    for number, night in enumerate((0, 1, 1)):
        config = new_machine(tmp_path / f"machine-{number}", store_url)
        begin_night(config, night)
        before = len(billed(bill))
        run = run_night(config, bill)
        assert (len(billed(bill)) > before) == (number == 1)
        root = load_config(config).root
        assert content(root) == undisturbed[night]
        readers = lorestream.open(store_url, cache=tmp_path / "cache")
        assert readers.current_snapshot == run.report.snapshot == lorestream.open(root).current_snapshot
        assert warehouse_status(root)["requests_pending"] == 0
    assert max(Counter(billed(bill)).values()) == 1


# The thread that renews a lease dies with its machine.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_machines_that_die_at_any_request_cost_at_most_the_segment_in_flight(
    tmp_path: Path, url: str, undisturbed: list[Tables], monkeypatch: pytest.MonkeyPatch, short_leases: None
) -> None:
    """Every machine dies, some requests later than the one before it, and is never seen again."""
    bill = tmp_path / "bill"
    initialised(tmp_path / "first", url)
    died = 0
    for number in range(60):
        config = new_machine(tmp_path / f"machine-{number}", url)
        # Every second one just before a request, the others just after it.
        objects = DyingObjects(url, 14 + 11 * number, after=bool(number % 2))
        with monkeypatch.context() as patch:
            patch.setattr("warehouse.workingcopy.FsspecObjects", lambda _url, objects=objects: objects)
            try:
                run_night(config, bill, wait_s=60)
            except Killed:
                died += 1
                continue
        break
    assert died >= 3
    assert content(load_config(config).root) == undisturbed[0]
    # The engine has one answer more under way than a segment holds.
    assert len(billed(bill)) - len(set(billed(bill))) <= died * (SEGMENT + 1)
    assert set(billed(bill)) == set(_answered(load_config(config).root))


def _answered(root: Path) -> list[str]:
    return [str(row["request_key"]) for row in stored_rows(root)["knowledge"]]


def test_a_backfill_saves_every_chunk_and_another_machine_has_nothing_left_of_it(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TASKS:
        monkeypatch.setattr(refreshing, name, getattr(refreshing, name).fn)
    monkeypatch.setattr(refreshing, "create_markdown_artifact", lambda *_args, **_named: None)
    monkeypatch.setattr("flows.run.TextEncoder", QuickEncoder)
    monkeypatch.setattr("flows.run._make_engine", lambda _config: scripted_engine())
    day = (START, START + timedelta(days=1))
    first = initialised(tmp_path / "first", url)
    done = backfill.fn(*day, first, chunk_calls=6, wait_s=60.0)
    assert [chunk["calls"] > 0 for chunk in done["chunks"]] == [True, True]
    readers = lorestream.open(url, cache=tmp_path / "cache")
    assert len(readers.snapshots()) == 1 + 2
    # As it may wait, it gave the store back after the plan and after each chunk; the first lease was that of `sync`.
    assert newest(FsspecObjects(url), "lease") == 1 + 3
    second = new_machine(tmp_path / "second", url)
    assert backfill.fn(*day, second, chunk_calls=6)["calls"] == 0
    assert content(load_config(second).root) == content(load_config(first).root)


@pytest.mark.slow
def test_killed_processes_cost_at_most_the_segment_in_flight_on_s3(
    tmp_path: Path, s3_url: str, undisturbed: list[Tables]
) -> None:
    initialised(tmp_path / "first", s3_url)
    script = ROOT / "tests" / "flows" / "store_nights.py"
    kills = ["12", "19", "24", "28", "31", "38", "45", "52"]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), s3_url, *kills],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout)
    assert ends[-1] == 0, done.stderr[-3000:]
    assert ends.count(-9) >= 5
    bill = billed(tmp_path / "bill")
    assert len(bill) - len(set(bill)) <= ends.count(-9) * (SEGMENT + 1)
    last = new_machine(tmp_path / "last", s3_url)
    assert call(["sync", "--config", str(last)]) == 0
    assert content(load_config(last).root) == undisturbed[0]


@pytest.fixture(scope="module")
def peopled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peopled") / "shop"
    open_erased_shop(folder)
    return folder


def peopled_machine(peopled: Path, folder: Path, url: str) -> Path:
    config = Path(shutil.copytree(peopled, folder)) / "lorestream.toml"
    config.write_text(f'store = "{url}"\n{config.read_text()}')
    return config


def test_the_store_and_other_working_copies_lose_the_erased_byte_by_byte(
    tmp_path: Path, peopled: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = USER_WORDS + ITEM_WORDS
    here = peopled_machine(peopled, tmp_path / "here", store_url)
    there = peopled_machine(peopled, tmp_path / "there", store_url)
    shutil.rmtree(load_config(there).root)
    for config in (here, there):
        assert call(["sync", "--config", str(config)]) == 0
    assert files_with(load_config(there).root, words, WEIGHTS)
    # What a push that was killed before its index has put there.
    FsspecObjects(store_url).write("knowledge/killed.0123456789abcdef.parquet", USER.encode())
    with monkeypatch.context() as patch:
        patch.setattr(FsspecObjects, "create", _unreachable)
        with pytest.raises(StoreUnavailable):
            erase_entities(load_config(here), [USER], [ITEM])
    assert [report["finished_at"] for report in erasures(load_config(here).root)] == [None]
    report = erase_entities(load_config(here), [USER], [ITEM])
    assert report["finished_at"] is not None
    assert files_with(load_config(here).root, words, WEIGHTS) == {}
    assert files_with(download(store_url, tmp_path / "objects"), words, WEIGHTS) == {}
    assert call(["sync", "--config", str(there)]) == 0
    assert files_with(load_config(there).root, words, WEIGHTS) == {}
    assert stored_rows(load_config(there).root) == stored_rows(load_config(here).root)
    assert erasures(load_config(there).root) == erasures(load_config(here).root)


def _unreachable(_objects: FsspecObjects, name: str, _content: bytes) -> None:
    if name.startswith("index/"):
        raise StoreUnavailable("s3://x", "gone")
    FsspecObjects.write(_objects, name, _content)


def test_all_that_runs_leave_is_in_the_store_and_garbage_leaves_it_too(tmp_path: Path, url: str) -> None:
    config, objects = initialised(tmp_path / "m", url), FsspecObjects(url)
    config.write_text(f"{config.read_text()}[budget]\nmax_calls = 1000\n")
    root = load_config(config).root
    for night in range(NIGHTS):
        begin_night(config, night)
        run_night(config, tmp_path / "bill")
    index = index_of(url)
    here = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    # But for what is of one place.
    assert here - index.files.keys() == {LOCK_NAME, TURN_NAME, "features.duckdb", RECORD_NAME}
    assert index.files.keys() <= here
    assert any(name.startswith("spending/") for name in here)
    objects.write("knowledge/killed.0123456789abcdef.parquet", b"x")
    before = {name for folder in FOLDERS for name in objects.sizes(folder)}
    loaded = load_config(config, {"snapshots.keep": 1, "snapshots.grace_hours": 0.0})
    assert remove_garbage(loaded, dry_run=True)["files"]
    assert {name for folder in FOLDERS for name in objects.sizes(folder)} == before
    assert remove_garbage(loaded)["by_reason"]
    after = {name for folder in FOLDERS for name in objects.sizes(folder)}
    index = index_of(url)
    assert after == index.objects()
    # Superseded open partitions, the snapshot before, and the stray object; the manifest is another.
    assert len(before - after) > 3
    fresh = new_machine(tmp_path / "fresh", url)
    assert call(["sync", "--config", str(fresh)]) == 0
    assert content(load_config(fresh).root) == content(root)


def test_what_one_machine_compacts_all_others_read_and_its_parts_leave_the_store_as_garbage(
    tmp_path: Path, url: str
) -> None:
    config, objects = initialised(tmp_path / "m", url), FsspecObjects(url)
    root, bill = load_config(config).root, tmp_path / "bill"
    for night in range(NIGHTS):
        begin_night(config, night)
        run_night(config, bill)
    late = new_machine(tmp_path / "late", url)
    assert call(["sync", "--config", str(late)]) == 0
    events = pq.read_table(config.parent / "inputs" / "behaviours.parquet")
    tables, joined, calls = content(root), lorestream.open(root).join(events).to_arrow(), len(billed(bill))
    before = index_of(url)

    report = merge_small_files(load_config(config))
    internal = cast("dict[str, dict[str, int]]", report["internal"])
    assert report["merged"] == 2
    assert {"behaviours", "partitions", "requests", "knowledge", "embeddings"} <= internal.keys()
    assert all(files["after"] < files["before"] for files in internal.values())
    # Who reads the parts may go on for a while.
    merged = index_of(url)
    assert before.files.keys() < merged.files.keys()

    remove_garbage(load_config(config, {"snapshots.keep": 1, "snapshots.grace_hours": 0.0}))
    after = index_of(url)
    gone = {Path(name).parts[0] for name in merged.files.keys() - after.files.keys()}
    assert gone >= {"features", *internal}
    assert {name for folder in FOLDERS for name in objects.sizes(folder)} == after.objects()

    readers = lorestream.open(url, cache=tmp_path / "cache")
    assert readers.current_snapshot == report["snapshot"]
    assert readers.join(events).to_arrow().equals(joined)
    for machine in (late, new_machine(tmp_path / "fresh", url)):
        begin_night(machine, NIGHTS - 1)
        assert run_night(machine, bill).report.snapshot == report["snapshot"]
        assert content(load_config(machine).root) == tables
        assert lorestream.open(load_config(machine).root).join(events).to_arrow().equals(joined)
    assert len(billed(bill)) == calls


def test_what_is_wrong_with_a_store_is_said_in_one_line(
    tmp_path: Path, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def said(config: Path, *verb: str) -> tuple[int, str]:
        code = call([*verb, "--config", str(config)])
        return code, capfd.readouterr().err

    config = new_machine(tmp_path / "m", None)
    code, message = said(config, "sync")
    assert (code, 'no store. Add store = "s3://bucket/warehouse" to the configuration' in message) == (2, True)
    config.write_text(f'store = "somewhere"\n{config.read_text()}')
    assert "`store` = 'somewhere'" in said(config, "sync")[1]
    config = new_machine(tmp_path / "m", url)
    code, message = said(config, "sync")
    assert (code, "There is no warehouse" in message) == (2, True)
    # A verb that reads does not fetch, and says who does.
    initialised(tmp_path / "first", url)
    code, message = said(config, "status")
    assert (code, "`lorestream sync`" in message) == (2, True)
    with lease(FsspecObjects(url), url, "night run", "elsewhere"):
        code, message = said(config, "gc")
        assert code == 3
        assert f"{url} is being written by night run" in message
    assert said(config, "gc")[0] == 0
    other = new_machine(tmp_path / "other", url)
    prepare_warehouse(load_config(other).root)
    run_night(new_machine(tmp_path / "first", url), tmp_path / "bill")
    (load_config(config).root / "knowledge").mkdir(exist_ok=True)
    (load_config(config).root / "knowledge" / "own.parquet").write_bytes(b"x")
    code, message = said(config, "sync")
    assert (code, "knowledge/own.parquet" in message, "move the folder away" in message) == (2, True, True)
