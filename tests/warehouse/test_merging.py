import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.warehouse.conftest import _rows
from warehouse import merging
from warehouse.errors import CorruptWarehouse
from warehouse.garbage import collect_garbage
from warehouse.inputs import REJECTED
from warehouse.ledger import Ledger
from warehouse.manifest import publish
from warehouse.merging import in_batches, merge_internal
from warehouse.snapshot import read_inputs, read_manifest, write_inputs
from warehouse.store import read_table, write_table

Clock = Callable[[int], datetime]


@given(sizes=st.lists(st.integers(1, 49), max_size=30))
def test_every_file_is_in_one_batch_in_its_order(sizes: list[int]) -> None:
    batches = in_batches(sizes, 100)
    assert [place for batch in batches for place in batch] == (list(range(len(sizes))) if len(sizes) > 1 else [])
    assert all(len(batch) > 1 for batch in batches)
    assert all(100 <= sum(sizes[place] for place in batch) < 150 for batch in batches[:-1])
    assert all(sum(sizes[place] for place in batch) < 200 for batch in batches[-1:])


def rejected(first: int, rows: int = 2) -> pa.Table:
    numbers = [str(n) for n in range(first, first + rows)]
    columns = {field.name: numbers if field.type == pa.string() else [None] * rows for field in REJECTED}
    return pa.table(columns, schema=REJECTED)


@pytest.fixture
def root(tmp_path: Path, at: Clock) -> Path:
    """A warehouse of four nights, each with a file of rejected rows, published with what the first three had."""
    ledger = Ledger(tmp_path)
    publish(tmp_path, {}, replace=False, now=at(0), lineage={})
    for night in range(4):
        file = tmp_path / "rejected" / f"night-{night}.parquet"
        write_table(file, rejected(2 * night))
        ledger.commit("ingest", add={"rejected": [file]}, now=at(night))
    return tmp_path


def publish_from(root: Path, now: datetime, *names: str) -> None:
    """An adapter's rows, made from these files."""
    inputs = write_inputs(root, "run", {"made_by": "a", "files": {"rejected": list(names)}})
    rows = _rows("user_features", [{"user_id": "a", "valid_from": now}])
    publish(root, {"user_features": rows}, replace=True, now=now, lineage={"inputs": inputs})


def stored(root: Path) -> list[str]:
    return read_table(Ledger(root).files("rejected"), REJECTED)["row"].to_pylist()


def test_rows_keep_their_order_and_old_files_stay_for_their_readers(root: Path, at: Clock) -> None:
    before = stored(root)
    assert merge_internal(root, target_mb=1, now=at(9)) == {"rejected": {"before": 4, "after": 1}}
    assert stored(root) == before
    assert merge_internal(root, target_mb=1, now=at(9)) == {}
    assert len(list((root / "rejected").glob("night-*"))) == 4
    collect_garbage(root, keep=9, grace=timedelta(seconds=5), now=at(20))
    assert [path.name[:7] for path in (root / "rejected").iterdir()] == ["merged-"]
    assert stored(root) == before
    later = root / "rejected" / "night-9.parquet"
    write_table(later, rejected(100))
    Ledger(root).commit("ingest", add={"rejected": [later]}, now=at(30))
    merge_internal(root, target_mb=1, now=at(31))
    assert stored(root) == [*before, "100", "101"]


def test_what_stands_before_a_large_file_or_has_another_schema_stays(root: Path, at: Clock) -> None:
    ledger = Ledger(root)
    before = stored(root)
    large = root / "rejected" / "large.parquet"
    write_table(large, rejected(1000, rows=200_000))
    ledger.commit("ingest", add={"rejected": [large]}, now=at(5))
    assert large.stat().st_size > 500_000
    assert merge_internal(root, target_mb=1, now=at(6)) == {}
    for number, columns in enumerate((["row"], REJECTED.names, REJECTED.names)):
        file = root / "rejected" / f"late-{number}.parquet"
        write_table(file, rejected(number).select(columns))
        ledger.commit("ingest", add={"rejected": [file]}, now=at(7))
    assert merge_internal(root, target_mb=1, now=at(8)) == {"rejected": {"before": 8, "after": 7}}
    names = [path.name for path in Ledger(root).files("rejected")]
    assert names[:6] == [*(f"night-{n}.parquet" for n in range(4)), "large.parquet", "late-0.parquet"]
    assert read_table(Ledger(root).files("rejected")[:4], REJECTED)["row"].to_pylist() == before


def test_events_that_are_not_yet_partitioned_stay_where_they_are(root: Path, at: Clock) -> None:
    ledger = Ledger(root)
    ledger.commit("ingest", add={"unpartitioned": [root / "rejected" / "night-2.parquet"]}, now=at(5))
    assert merge_internal(root, target_mb=1, now=at(6)) == {}
    ledger.commit("partition", add={}, remove={"unpartitioned": ["rejected/night-2.parquet"]}, now=at(7))
    assert merge_internal(root, target_mb=1, now=at(8)) == {"rejected": {"before": 4, "after": 1}}


def test_a_merge_that_was_killed_before_its_commit_changed_nothing_and_is_repeated(
    root: Path, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    before, files = stored(root), Ledger(root).files("rejected")
    with monkeypatch.context() as patch:
        patch.setattr(merging.Ledger, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_internal(root, target_mb=1, now=at(6))
    assert Ledger(root).files("rejected") == files
    (orphan,) = (root / "rejected").glob("merged-*")
    merge_internal(root, target_mb=1, now=at(7))
    assert Ledger(root).files("rejected") == [orphan.resolve()]
    assert stored(root) == before


def test_what_a_publication_has_seen_stays_seen(root: Path, at: Clock) -> None:
    nights = [f"night-{n}.parquet" for n in range(4)]
    publish_from(root, at(5), *nights)
    other = Path(shutil.copytree(root, root.parent / "other"))
    publish_from(other, at(6), *nights[:3])
    for folder, seen in ((root, {"merged"}), (other, {"night"})):
        merge_internal(folder, target_mb=1, now=at(7))
        current = read_manifest(folder).current_snapshot()
        assert current is not None
        inputs = read_inputs(folder, current)
        assert inputs["made_by"] == "a"
        assert {name.split("-")[0] for name in inputs["files"]["rejected"]} == seen  # type: ignore[index]


def test_a_damaged_part_is_named_and_nothing_is_merged(root: Path, at: Clock) -> None:
    victim = root / "rejected" / "night-1.parquet"
    victim.write_bytes(victim.read_bytes()[:100])
    files = Ledger(root).files("rejected")
    with pytest.raises(CorruptWarehouse, match=r"night-1\.parquet"):
        merge_internal(root, target_mb=1, now=at(6))
    assert Ledger(root).files("rejected") == files
