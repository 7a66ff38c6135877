"""Erasure of a user and of an item from a whole shop: byte by byte, and with everybody else left as they were."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lorestream
from flows import stages
from flows.cli import call
from flows.compact import merge_small_files
from flows.config import load_config
from flows.erase import erase_entities
from tests.byte_scan import files_with
from tests.flows.conftest import ROOT
from tests.flows.erased_shop import (
    ITEM,
    ITEM_WORDS,
    USER,
    USER_WORDS,
    happened,
    open_erased_shop,
    run_talking,
    stored_rows,
    write,
)
from tests.flows.shop import WEIGHTS, open_run
from warehouse.erase import erasures
from warehouse.errors import CorruptWarehouse
from warehouse.retention import pin
from warehouse.snapshot import read_manifest
from warehouse.status import warehouse_status
from warehouse.store import write_json

Rows = dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "shop"
    open_erased_shop(folder)
    return folder


@pytest.fixture
def shop(finished: Path, tmp_path: Path) -> Path:
    """The config file of a copy of the finished shop."""
    return Path(shutil.copytree(finished, tmp_path / "shop")) / "lorestream.toml"


def root_of(shop: Path) -> Path:
    return shop.parent / "warehouse"


def scanned(shop: Path, words: list[str]) -> dict[str, list[str]]:
    return files_with(root_of(shop), words, WEIGHTS)


def without_user(before: Rows) -> Rows:
    """What should be left: every row that is not the user's, exactly as it was."""

    def is_users(table: str, row: dict[str, object]) -> bool:
        if table == "requests":
            return str(row["kind"]).startswith("user_") and row["entity_id"] == USER
        if table == "rejected":
            return USER in str(row["row"])
        return USER in (row.get("user_id"), row.get("entity_id"))

    left = {table: [row for row in rows if not is_users(table, row)] for table, rows in before.items()}
    keys = {row["request_key"] for row in left["requests"]}
    for table in ("knowledge", "embeddings"):
        left[table] = [row for row in left[table] if row["request_key"] in keys]
    return left


@pytest.mark.parametrize("compacted", [False, True])
def test_no_byte_of_an_erased_user_is_left_and_nobody_elses_row_changes(shop: Path, compacted: bool) -> None:
    if compacted:
        # The parts stay for whoever reads them, and have to go all the same.
        merged = merge_small_files(load_config(shop))["internal"]
        assert isinstance(merged, dict)
        assert {"requests", "partitions", "knowledge", "embeddings"} <= merged.keys()
    before = stored_rows(root_of(shop))
    # Erasure wins over pins.
    pin(root_of(shop), read_manifest(root_of(shop)).snapshots[1].snapshot_id)
    # The words stand where they can: in tables, in the pool's tokens, in rows kept aside, in files nobody counts on.
    assert {path.split("/")[0] for path in scanned(shop, USER_WORDS)} >= {
        *("behaviours", "users", "partitions", "open", "requests", "knowledge", "group_members"),
        *("features", "pools", "rejected"),
    }
    report = erase_entities(load_config(shop), [USER], [])
    assert scanned(shop, USER_WORDS) == {}
    assert stored_rows(root_of(shop)) == without_user(before)
    gone = sum(map(len, before.values())) - sum(map(len, without_user(before).values()))
    counted = sum(report["rows"].values()) + len([row for row in before["unpartitioned"] if row["user_id"] == USER])
    # What was compacted counts twice: older snapshots have the same rows in other files.
    assert gone == counted or (compacted and gone < counted)
    assert USER not in json.dumps(report)
    readers = lorestream.open(root_of(shop))
    assert readers.current_snapshot == report["snapshot"]
    assert USER not in readers.table("user_features").to_arrow().column("user_id").to_pylist()
    assert len(readers.snapshots()) == 2, "the empty one that never held anybody, and the new one"
    assert not read_manifest(root_of(shop)).pinned


def test_an_erased_user_does_not_come_back_from_old_files_changed_files_or_new_ones(shop: Path) -> None:
    erase_entities(load_config(shop), [USER], [])
    tables = stored_rows(root_of(shop))
    # Copied, the inputs have other paths than the files that were read: all are read again.
    write(shop.parent, "behaviours-4.parquet", [happened(0, 3, 200 + n) for n in range(9)])
    report, calls = run_talking(shop)
    assert calls == 0
    [note] = [note for note in report.notes if "`behaviours`" in note]
    assert "erased 21" in note, note
    assert scanned(shop, USER_WORDS) == {}
    after = stored_rows(root_of(shop))
    assert {t: rows for t, rows in after.items() if t != "rejected"} == {
        t: rows for t, rows in tables.items() if t != "rejected"
    }
    assert {row["row"] for row in after["rejected"] if row["reason"] == "erased"} == {"{}"}
    # A share of erased rows is no fault of the input.
    shop.write_text(shop.read_text().replace("max_rejected_fraction = 0.5", "max_rejected_fraction = 0.0"))
    write(shop.parent, "behaviours-4.parquet", [happened(0, 3, 300 + n) for n in range(9)])
    run = open_run(shop, quick=True)
    stages.ingest(run)
    assert run.report.rejected == 9


def test_no_byte_of_an_erased_item_is_left_and_its_titles_texts_are_asked_anew_without_it(shop: Path) -> None:
    before = stored_rows(root_of(shop))
    assert {path.split("/")[0] for path in scanned(shop, ITEM_WORDS)} >= {
        *("behaviours", "items", "partitions", "open", "requests", "knowledge", "groups", "group_members"),
        *("item_factors", "features", "pools", "rejected"),
    }
    report = erase_entities(load_config(shop), [], [ITEM])
    assert scanned(shop, ITEM_WORDS) == {}
    after = stored_rows(root_of(shop))
    for table in ("users", "user_features"):
        assert after[table] == before[table]
    for table in ("behaviours", "items", "item_features", "item_factors"):
        assert after[table] == [row for row in before[table] if row["item_id"] != ITEM]
    for table, lists in (("partitions", "items"), ("open", "items"), ("groups", "named")):
        assert [_shown(row) for row in after[table]] == [_shown(_cut(row, lists)) for row in before[table]]
        assert [row for row in after[table] if row in before[table]] == [
            row for row in before[table] if ITEM not in row[lists]
        ]
    # Who never met the item keeps every request and text; who did keeps those before it.
    touched = {(row["user_id"], row["partition_no"]) for row in before["partitions"] if ITEM in row["items"]}
    firsts = {user: min(no for u, no in touched if u == user) for user, _ in touched}
    for row in before["requests"]:
        is_safe = str(row["kind"]).startswith("user_") and row["partition_no"] < firsts.get(row["entity_id"], 99)
        assert not is_safe or row in after["requests"]
    summaries = {(r["entity_id"], r["partition_no"]) for r in after["requests"] if r["kind"] == "user_summary"}
    assert not summaries & touched
    again, _calls = run_talking(shop)
    assert again.calls_by_kind["user_summary"] == len(touched)
    assert 0 < sum(again.calls_by_kind.values()) <= report["asked_anew"]
    assert scanned(shop, ITEM_WORDS) == {}
    newest = {
        (row["user_id"], row["partition_no"]): row
        for row in sorted(stored_rows(root_of(shop))["user_features"], key=lambda row: str(row["created_at"]))
    }
    assert all(row["snapshot_id"] == again.snapshot for key, row in newest.items() if key in touched)


def _cut(row: dict[str, object], lists: str) -> dict[str, object]:
    """A row without the places of its lists at which the item stands."""
    named = row[lists]
    assert isinstance(named, list)
    places = [place for place, item in enumerate(named) if item != ITEM]
    aligned = [name for name in (lists, "values", "ts") if isinstance(row.get(name), list)]
    return row | {name: [row[name][place] for place in places] for name in aligned}  # type: ignore[index]


def _shown(row: dict[str, object]) -> dict[str, object]:
    """A row without the digest that names it."""
    return {name: value for name, value in row.items() if name != "digest"}


@pytest.mark.slow
def test_what_quotes_a_text_about_an_erased_item_goes_along_the_whole_cascade(tmp_path: Path) -> None:
    shop = open_erased_shop(tmp_path / "shop", cascade="summary")
    erase_entities(load_config(shop), [], [ITEM])
    assert scanned(shop, ITEM_WORDS) == {}


def test_a_user_and_an_item_of_one_id_are_two(shop: Path) -> None:
    before = stored_rows(root_of(shop))
    report = erase_entities(load_config(shop), ["i2"], [USER])
    # Of lines that do not parse nobody can tell whose they are: those that hold the id go.
    assert set(report["rows"]) == {"rejected"}
    assert [row for row in before["rejected"] if row not in stored_rows(root_of(shop))["rejected"]] == [
        row for row in before["rejected"] if row["reason"] == "unparseable_row" and USER in str(row["row"])
    ]
    assert {t: rows for t, rows in stored_rows(root_of(shop)).items() if t != "rejected"} == {
        t: rows for t, rows in before.items() if t != "rejected"
    }
    report = erase_entities(load_config(shop), ["u1"], [])
    assert all(row["user_id"] != "u1" for row in stored_rows(root_of(shop))["user_features"])


def test_a_dry_run_counts_what_the_erasure_then_finds_and_writes_nothing(
    shop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in shop.parent.rglob("*") if path.is_file()}
    command = ["erase", "--user", USER, "--item", ITEM, "--json", "--config", str(shop)]
    assert call([*command, "--dry-run"]) == 0
    planned = json.loads(capfd.readouterr().out)
    assert {path: path.read_bytes() for path in shop.parent.rglob("*") if path.is_file()} == files
    assert call(command) == 0
    done = json.loads(capfd.readouterr().out)
    for name in ("rows", "snapshots_expired", "pools_removed", "marked_groups", "marked_adapters", "asked_anew"):
        assert planned[name] == done[name]
    assert scanned(shop, USER_WORDS + ITEM_WORDS) == {}
    status = warehouse_status(root_of(shop))["erasures"]
    assert (status["begun"], status["finished"]) == (1, 1)
    assert status["marked_groups"] == done["marked_groups"]


def test_groups_are_clustered_anew_without_the_erased_where_that_is_asked_for(shop: Path) -> None:
    made = erase_entities(load_config(shop), [USER], [], rebuild_groups=True)
    assert made["groups_rebuilt"] == 2
    members = [row for row in stored_rows(root_of(shop))["group_members"] if row["generation"] == 2]
    assert {row["entity_id"] for row in members if row["kind"] == "group_likes"} == {f"u{n}" for n in range(1, 6)}


def test_files_that_nobody_counts_on_go_and_batch_files_lose_the_lines_of_the_erased(shop: Path) -> None:
    root = root_of(shop)
    requests = stored_rows(root)["requests"]
    lines = [{"custom_id": row["request_key"], "body": {"prompt": row["prompt"]}} for row in requests]
    (root / "batch.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for table in ("requests", "behaviours"):
        shutil.copy(next((root / table).glob("*.parquet")), root / table / "orphan.parquet")
    (root / ".tmp-killed").mkdir()
    (root / ".tmp-killed" / "events.arrow").write_text(USER)
    erase_entities(load_config(shop), [USER], [])
    assert scanned(shop, USER_WORDS) == {}
    assert not list(root.rglob("orphan.parquet"))
    kept = [json.loads(line)["custom_id"] for line in (root / "batch.jsonl").read_text().splitlines()]
    stays = {row["request_key"] for row in stored_rows(root)["requests"]}
    assert kept == [line["custom_id"] for line in lines if line["custom_id"] in stays]


@pytest.mark.slow
def test_a_text_that_two_users_share_stays_for_the_other(shop: Path) -> None:
    shop.write_text(shop.read_text().replace('scenario = "lamps.toml"', 'scenario = "lamps.toml"\nshow_time = false'))
    write(shop.parent, "behaviours-5.parquet", [twin(n, hour) for n, hour in ((3, 0), (4, 1))])
    write(shop.parent, "behaviours-6.parquet", [twin(n, hour, "u8") for n, hour in ((3, 0), (4, 1))])
    run_talking(shop)
    before = stored_rows(root_of(shop))
    [key] = {row["request_key"] for row in before["requests"] if row["entity_id"] in ("u7", "u8")}
    erase_entities(load_config(shop), ["u7"], [])
    after = stored_rows(root_of(shop))
    assert [row["entity_id"] for row in after["requests"] if row["request_key"] == key] == ["u8"]
    for table in ("knowledge", "embeddings"):
        assert [row for row in after[table] if row["request_key"] == key] == [
            row for row in before[table] if row["request_key"] == key
        ]
    erase_entities(load_config(shop), ["u8"], [])
    assert not [row for row in stored_rows(root_of(shop))["knowledge"] if row["request_key"] == key]
    # Theirs was the only text of its segment, which is gone and not missed.
    assert run_talking(shop)[1] == 0


def twin(item: int, hour: int, user: str = "u7") -> dict[str, object]:
    return happened(1, item, hour) | {"user_id": user}


def test_ids_may_come_from_standard_input_and_nobody_is_a_usage_error(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{USER}\nu1\n"))
    assert call(["erase", "--user", "-", "--config", str(shop)]) == 0
    assert {row["user_id"] for row in stored_rows(root_of(shop))["user_features"]} == {"u2", "u3", "u4", "u5"}
    assert call(["erase", "--config", str(shop)]) == 2
    assert "--user ID" in capfd.readouterr().err


def test_an_id_that_nobody_has_is_barred_all_the_same(shop: Path) -> None:
    before = stored_rows(root_of(shop))
    report = erase_entities(load_config(shop), ["nobody"], [])
    assert (report["rows"], report["marked_adapters"]) == ({}, [])
    assert "barred" in report["notes"][0]
    assert len(report["notes"]) == 1
    [_, told] = erase_entities(load_config(shop), ["i3"], [], dry_run=True)["notes"]
    assert told == "items are called so, and they were left as they are"
    assert stored_rows(root_of(shop)) == before
    write(shop.parent, "behaviours-4.parquet", [happened(1, 3, 200 + n) | {"user_id": "nobody"} for n in range(9)])
    run = open_run(shop, quick=True)
    stages.ingest(run)
    assert run.report.events == 0


def test_an_interrupted_erasure_is_said_by_the_next_run(shop: Path) -> None:
    erase_entities(load_config(shop), [USER], [])
    [file] = (root_of(shop) / "erasures").glob("0*.json")
    write_json(file, json.loads(file.read_text()) | {"finished_at": None})
    run = open_run(shop, quick=True)
    stages.ingest(run)
    assert any("was interrupted" in note and "again" in note for note in run.report.notes)


@pytest.mark.parametrize("change", [lambda text: text[:-20], lambda text: text.replace('"salt"', '"salz"')])
def test_a_damaged_list_of_erased_ids_stops_a_run(shop: Path, change: Callable[[str], str]) -> None:
    erase_entities(load_config(shop), [USER], [])
    file = root_of(shop) / "erasures" / "erased.json"
    file.write_text(change(file.read_text()))
    with pytest.raises(CorruptWarehouse, match="backup"):
        stages.ingest(open_run(shop, quick=True))


def killed(finished: Path, out: Path, steps: list[int]) -> dict[str, bool]:
    """Erasures killed before the file-system changes `steps`; whether each got there. See `kill_erasure`."""
    script = Path(__file__).parents[1] / "warehouse" / "kill_erasure.py"
    done = subprocess.run(
        [sys.executable, str(script), str(finished / "warehouse"), str(out), USER, ITEM, *map(str, steps)],
        env={"PYTHONPATH": str(script.parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reached: dict[str, bool] = json.loads(done.stdout)
    return reached


def check_killed(finished: Path, out: Path, steps: list[int]) -> int:
    """How many of `steps` there are in an erasure. After each the readers' tables are whole, and completed everything
    is as after an erasure that nobody killed."""
    reached = killed(finished, out, [*steps, 10_000])
    assert not reached["10000"]
    before, after = stored_rows(finished / "warehouse"), stored_rows(out / "10000")
    public = ("user_features", "item_features")
    for step in steps:
        left = stored_rows(out / str(step)) if reached[str(step)] else after
        assert [left[table] for table in public] in ([rows[table] for table in public] for rows in (before, after))
        assert stored_rows(out / f"{step}-again") == after
        assert files_with(out / f"{step}-again", USER_WORDS + ITEM_WORDS, WEIGHTS) == {}
        first, *second = erasures(out / f"{step}-again")
        assert first["finished_at"] is not None
        assert first["rows"] == erasures(out / "10000")[0]["rows"]
        # The last change of all is behind the finished report, and then the second call finds nothing.
        assert [report["rows"] for report in second] in ([], [{}])
    return sum(reached.values())


def test_an_erasure_that_is_killed_is_completed_by_the_same_call_again(finished: Path, tmp_path: Path) -> None:
    # Among the rewritten tables, and between them and the snapshots.
    assert check_killed(finished, tmp_path, [21, 52]) == 2


@pytest.mark.slow
def test_an_erasure_that_is_killed_anywhere_is_completed(finished: Path, tmp_path: Path) -> None:
    steps = list(range(150))
    assert 60 < check_killed(finished, tmp_path, steps) < len(steps)


def test_no_parameter_of_a_flow_can_hold_an_id_because_erasure_is_none() -> None:
    """Prefect stores the parameters of flows in a database that an erasure cannot reach."""
    script = "import sys, flows.erase; assert 'prefect' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
