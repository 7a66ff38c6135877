from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.manifest import publish, rollback, snapshots
from warehouse.reader import open as open_warehouse
from warehouse.retention import pin, retire, unpin
from warehouse.schemas import FEATURES
from warehouse.snapshot import Manifest, Snapshot, read_manifest

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


def bare(snapshot_id: str, moment: datetime) -> Snapshot:
    empty = dict.fromkeys(FEATURES, ())
    return Snapshot(snapshot_id, moment, None, empty, {table: {"rows": 0} for table in FEATURES}, {})


@given(
    made=st.integers(1, 8),
    keep=st.integers(1, 9),
    pinned=st.sets(st.integers(0, 7)),
    gone=st.sets(st.integers(0, 7)),
    current=st.integers(0, 7),
)
def test_retention_retires_what_is_neither_new_nor_pinned_nor_current(
    at: Clock, made: int, keep: int, pinned: set[int], gone: set[int], current: int
) -> None:
    current %= made
    snapshots = tuple(bare(str(n), at(n)) for n in range(made))
    already = {str(n): at(100) for n in gone - {current} - pinned if n < made}
    manifest = Manifest(str(current), snapshots, frozenset(str(n) for n in pinned if n < made), already)
    after = retire(manifest, keep, at(200))
    listed_before = [n for n in range(made) if str(n) not in already]
    for n in range(made):
        stays = n == current or n in pinned or n in listed_before[-keep:]
        assert after.retired.get(str(n)) == (already[str(n)] if str(n) in already else None if stays else at(200))
    assert after.snapshots == snapshots
    assert retire(after, keep, at(300)) == after


@pytest.fixture
def three(tmp_path: Path, feature_rows: Build, at: Clock) -> list[str]:
    """Ids of three snapshots, each of one user more."""
    made = []
    for n, user in enumerate("abc"):
        rows = feature_rows("user_features", [{"user_id": user, "valid_from": at(1)}])
        made.append(publish(tmp_path, {"user_features": rows}, replace=False, now=at(n), lineage={}).snapshot_id)
    return made


def publish_another(root: Path, feature_rows: Build, at: Clock, keep: int) -> str:
    rows = feature_rows("user_features", [{"user_id": "z", "valid_from": at(1)}])
    return publish(root, {"user_features": rows}, replace=False, now=at(9), lineage={}, keep=keep).snapshot_id


def test_a_publication_retires_all_but_the_newest_and_the_pinned(
    tmp_path: Path, three: list[str], feature_rows: Build, at: Clock
) -> None:
    pin(tmp_path, three[0])
    newest = publish_another(tmp_path, feature_rows, at, keep=2)
    assert [s.snapshot_id for s in snapshots(tmp_path)] == [three[0], three[2], newest]
    assert [s.snapshot_id for s in open_warehouse(tmp_path).snapshots()] == [three[0], three[2], newest]
    # Given up, and yet readable for whoever knows it.
    assert len(open_warehouse(tmp_path, snapshot=three[1]).table("user_features")) == 2
    unpin(tmp_path, three[0])
    assert read_manifest(tmp_path).pinned == frozenset()
    publish_another(tmp_path, feature_rows, at, keep=2)
    assert three[0] in read_manifest(tmp_path).retired


def test_what_is_pinned_or_rolled_back_to_is_listed_again(
    tmp_path: Path, three: list[str], feature_rows: Build, at: Clock
) -> None:
    publish_another(tmp_path, feature_rows, at, keep=1)
    assert set(read_manifest(tmp_path).retired) == set(three)
    pin(tmp_path, three[0])
    rollback(tmp_path, three[1])
    assert set(read_manifest(tmp_path).retired) == {three[2]}


def test_a_pin_needs_a_snapshot_whose_files_are_there(tmp_path: Path, three: list[str]) -> None:
    for change in (pin, unpin):
        with pytest.raises(UsageError, match="no snapshot `nope`"):
            change(tmp_path, "nope")
    (tmp_path / "features" / "user_features" / f"{three[0]}.parquet").unlink()
    with pytest.raises(CorruptWarehouse, match="is missing, although snapshot"):
        pin(tmp_path, three[0])
    assert read_manifest(tmp_path).pinned == frozenset()


def test_a_rollback_gives_byte_identical_joins(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    users = [{"user_id": f"u{n % 5}", "valid_from": at(n), "augment": [n / 3, -n]} for n in range(20)]
    first = publish(
        tmp_path, {"user_features": feature_rows("user_features", users)}, replace=False, now=at(0), lineage={}
    )
    shown = pa.table({"user_id": [f"u{n % 6}" for n in range(40)], "ts": [at(n) for n in range(40)]})

    def joined() -> bytes:
        sink = pa.BufferOutputStream()
        table = open_warehouse(tmp_path).join(shown, item=None).to_arrow().combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return bytes(sink.getvalue())

    before = joined()
    other = [{**row, "augment": [0.0, 1.0]} for row in users]
    replaced = feature_rows("user_features", other)
    publish(tmp_path, {"user_features": replaced}, replace=True, now=at(50), lineage={})
    assert joined() != before
    rollback(tmp_path, first.snapshot_id)
    assert joined() == before
