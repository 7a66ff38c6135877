import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.ledger import Ledger, LedgerConflict

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
CASES = Path(__file__).parent / "cases"


def touch(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return list(names)


# Each step adds so many files to a table and removes those at the given places of the live list.
steps = st.lists(
    st.tuples(st.sampled_from(["items", "users"]), st.integers(0, 3), st.sets(st.integers(0, 5))), max_size=6
)


@given(steps=steps)
@settings(max_examples=25, deadline=None)
def test_replay_equals_a_plain_list_of_live_files(steps: list[tuple[str, int, set[int]]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        ledger, live = Ledger(root), {"items": [], "users": []}
        for number, (table, added, places) in enumerate(steps):
            removed = [name for place, name in enumerate(live[table]) if place in places]
            names = touch(root, *(f"{table}/{number}-{i}.parquet" for i in range(added)))
            ledger.commit("run", {table: names}, remove={table: removed}, now=NOW)
            live[table] = [name for name in live[table] if name not in removed] + names
        for reader in (ledger, Ledger(root)):
            assert len(reader.commits()) == len(steps)
            for table, names in live.items():
                assert reader.files(table) == [root.resolve() / name for name in names]


def test_a_commit_reads_back_equal(tmp_path: Path) -> None:
    touch(tmp_path, "items/a.parquet")
    made = Ledger(tmp_path).commit(
        "ingest", {"items": [tmp_path / "items" / "a.parquet"]}, stats={"rows": 3, "reasons": {"no_id": 1}}, now=NOW
    )
    assert Ledger(tmp_path).commits() == [made]
    assert made.add == {"items": ("items/a.parquet",)}
    assert made.created_at == NOW


def test_an_open_ledger_sees_the_commits_of_others(tmp_path: Path) -> None:
    mine, other = Ledger(tmp_path), Ledger(tmp_path)
    assert mine.commits() == []
    other.commit("run", {"items": touch(tmp_path, "a")}, now=NOW)
    assert mine.files("items") == [tmp_path.resolve() / "a"]


def test_two_writers_of_one_number_cannot_both_win(tmp_path: Path) -> None:
    names = touch(tmp_path, *(f"items/{i}" for i in range(24)))

    def write(name: str) -> str:
        while True:
            try:
                Ledger(tmp_path).commit("run", {"items": [name]}, now=NOW)
            except LedgerConflict:
                continue
            return name

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, names)) == names
    commits = Ledger(tmp_path).commits()
    assert Counter(path for commit in commits for path in commit.add["items"]) == Counter(names)


def test_a_lost_race_records_nothing_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a", "b")
    slow = Ledger(tmp_path)
    Ledger(tmp_path).commit("run", {"items": ["a"]}, now=NOW)
    monkeypatch.setattr(slow, "commits", list)
    with pytest.raises(LedgerConflict, match=r"Commit 1 .* another writer .* Run again") as caught:
        slow.commit("run", {"items": ["b"]}, now=NOW)
    assert caught.value.exit_code == 3
    assert [commit.add for commit in Ledger(tmp_path).commits()] == [{"items": ("a",)}]


def test_a_missing_commit_is_named(tmp_path: Path) -> None:
    for _ in range(3):
        Ledger(tmp_path).commit("run", {}, now=NOW)
    (tmp_path / "ledger" / "00000002.json").unlink()
    with pytest.raises(CorruptWarehouse, match=r"00000002\.json is missing"):
        Ledger(tmp_path).files("items")


def test_temporary_and_foreign_files_are_no_commits(tmp_path: Path) -> None:
    Ledger(tmp_path).commit("run", {}, now=NOW)
    for name in (".tmp-00000002.json-77", "notes.json", "00000002.json.bak"):
        (tmp_path / "ledger" / name).write_text("{")
    assert len(Ledger(tmp_path).commits()) == 1


def test_a_damaged_commit_is_named(tmp_path: Path) -> None:
    Ledger(tmp_path).commit("run", {}, now=NOW)
    (tmp_path / "ledger" / "00000001.json").write_text('{"schema_version": 1, "kind": "run"}')
    with pytest.raises(CorruptWarehouse, match=r"00000001\.json does not have the form of a commit .*created_at"):
        Ledger(tmp_path).commits()


def test_a_commit_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "00000001.json").write_text('{"schema_version": 3}')
    with pytest.raises(UsageError, match="Upgrade Lorestream"):
        Ledger(tmp_path).files("items")


def test_a_ledger_of_version_1_still_loads() -> None:
    (commit,) = Ledger(CASES / "version-1").commits()
    assert commit.kind == "ingest"
    assert commit.add == {"behaviours": ("behaviours/00000001.parquet",)}
    assert commit.created_at == NOW


def test_an_older_lorestream_refuses_only_a_warehouse_where_a_text_file_stays_for_its_readers(tmp_path: Path) -> None:
    texts, requests = touch(tmp_path, "knowledge/1.parquet", "requests/1.parquet")
    ledger = Ledger(tmp_path)
    ledger.commit("segments", {"knowledge": [texts], "requests": [requests]}, now=NOW)
    ledger.commit("compact", {}, remove={"requests": [requests]}, now=NOW)
    ledger.commit("compact", {}, remove={"knowledge": [texts]}, now=NOW)
    written = [json.loads(path.read_text())["schema_version"] for path in sorted((tmp_path / "ledger").iterdir())]
    assert written == [1, 1, 2]
