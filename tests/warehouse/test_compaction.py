from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import catalog
from warehouse.compaction import compact, small_batches
from warehouse.manifest import publish
from warehouse.reader import open as open_warehouse
from warehouse.snapshot import read_manifest
from warehouse.store import FileRef

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


@given(sizes=st.lists(st.integers(1, 300), max_size=30))
def test_only_small_files_are_merged_each_once_and_to_about_the_target(sizes: list[int]) -> None:
    files = [FileRef(str(n), 1, size, "") for n, size in enumerate(sizes)]
    batches = list(small_batches(files, 100))
    merged = [ref for batch in batches for ref in batch]
    assert merged == [ref for ref in files if ref.bytes < 50][: len(merged)]
    assert all(len(batch) > 1 for batch in batches)
    assert all(100 <= sum(ref.bytes for ref in batch) < 150 for batch in batches[:-1])
    left = [ref for ref in files if ref.bytes < 50 and ref not in merged]
    assert len(left) <= 1


@given(
    publications=st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=8, deadline=None)
def test_compaction_keeps_every_row_and_every_match(
    feature_rows: Build, at: Clock, publications: list[list[tuple[str, int, int]]]
) -> None:
    shown = pa.table({"user_id": list("abcd") * 5, "ts": [at(n // 4) for n in range(20)]})
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "rebuild", lambda root: root)
        root = Path(folder)
        for number, rows in enumerate(publications):
            made = [
                {"user_id": u, "valid_from": at(v), "created_at": at(number), "partition_no": p, "augment": [number, v]}
                for u, v, p in dict.fromkeys(rows)
            ]
            table = feature_rows("user_features", made)
            publish(root, {"user_features": table}, replace=False, now=at(number), lineage={"adapter_version": "a"})
        before = open_warehouse(root)
        report = compact(root, target_mb=1, now=at(99))
        after = open_warehouse(root)
        order = [(name, "ascending") for name in ("user_id", "valid_from", "created_at", "partition_no")]
        one, other = (w.table("user_features").to_arrow().sort_by(order) for w in (before, after))
        assert one.equals(other)
        assert before.join(shown, item=None).to_arrow().equals(after.join(shown, item=None).to_arrow())
        assert len(after.snapshot.tables["user_features"]) == 1
        assert after.snapshot.lineage["adapter_version"] == "a"
        assert after.snapshot.stats["user_features"]["own"] == one.num_rows
        assert report.merged == (len(publications) if len(publications) > 1 else 0)


def test_a_compaction_with_nothing_to_merge_publishes_nothing(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    assert compact(tmp_path, target_mb=1, now=at(1)).snapshot is None
    rows = feature_rows("user_features", [{"user_id": "a", "valid_from": at(1)}])
    made = publish(tmp_path, {"user_features": rows}, replace=False, now=at(1), lineage={})
    report = compact(tmp_path, target_mb=1, now=at(2))
    assert (report.snapshot, report.merged) == (made.snapshot_id, 0)
    assert len(read_manifest(tmp_path).snapshots) == 1


def test_a_merged_file_can_be_merged_again_and_a_large_one_is_left(
    tmp_path: Path, feature_rows: Build, at: Clock
) -> None:
    dim, noise = 64, Random(0)
    for number, users in enumerate((4000, 1, 1)):
        rows = [
            {"user_id": f"{number}-{n}", "valid_from": at(1), "augment": [noise.random() for _ in range(dim)]}
            for n in range(users)
        ]
        table = feature_rows("user_features", rows, dim)
        publish(tmp_path, {"user_features": table}, replace=False, now=at(number), lineage={})
    first = compact(tmp_path, target_mb=1, now=at(5))
    assert (first.merged, first.files_after["user_features"]) == (2, 2)
    large = read_manifest(tmp_path).snapshots[0].tables["user_features"][0]
    assert large.bytes > 500_000
    rows = feature_rows("user_features", [{"user_id": "z", "valid_from": at(1), "augment": [0.5] * dim}], dim)
    publish(tmp_path, {"user_features": rows}, replace=False, now=at(6), lineage={})
    compact(tmp_path, target_mb=1, now=at(7))
    current = read_manifest(tmp_path).current_snapshot()
    assert current is not None
    assert current.tables["user_features"][0] == large
    assert [ref.rows for ref in current.tables["user_features"]] == [4000, 3]
