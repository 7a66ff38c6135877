"""Collection against a model: whatever is published, pinned, rolled back, compacted and collected, what is listed reads
as it was published, and nothing lies about that no record names."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import catalog, garbage
from warehouse.compaction import compact
from warehouse.garbage import GarbageReport, collect_garbage
from warehouse.ledger import Ledger
from warehouse.manifest import publish, rollback
from warehouse.reader import open as open_warehouse
from warehouse.retention import pin, unpin
from warehouse.snapshot import read_manifest
from warehouse.store import write_table

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]
NOW = datetime(2030, 1, 1, tzinfo=UTC)

steps = st.one_of(
    st.tuples(st.sampled_from(["add", "replace"]), st.integers(1, 3)),
    st.tuples(st.sampled_from(["pin", "unpin", "rollback"]), st.integers(0, 9)),
    st.tuples(st.just("gc"), st.integers(1, 3)),
    st.tuples(st.just("compact"), st.just(0)),
)


def users_in(root: Path, snapshot: str) -> list[str]:
    return sorted(open_warehouse(root, snapshot).table("user_features", ["user_id"]).to_arrow()["user_id"].to_pylist())


@given(plan=st.lists(steps, max_size=12), grace=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_nothing_that_is_listed_is_ever_lost_and_nothing_else_stays(
    feature_rows: Build, at: Clock, plan: list[tuple[str, int]], grace: int
) -> None:
    expected: dict[str, list[str]] = {}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "rebuild", lambda root: root)
        patch.setattr("warehouse.store._flush", lambda path: None)
        root = Path(folder)
        expected[publish(root, {}, replace=False, now=at(0), lineage={}).snapshot_id] = []
        for hour, (step, number) in enumerate(plan, start=1):
            now = at(3600 * hour)
            manifest = read_manifest(root)
            current = manifest.current
            assert current is not None
            chosen = manifest.listed[number % len(manifest.listed)].snapshot_id
            if step in ("add", "replace"):
                new = [f"{hour}-{n}" for n in range(number)]
                rows = feature_rows("user_features", [{"user_id": user, "valid_from": at(1)} for user in new])
                made = publish(root, {"user_features": rows}, replace=step == "replace", now=now, lineage={}, keep=3)
                expected[made.snapshot_id] = sorted(new + (expected[current] if step == "add" else []))
            elif step == "compact":
                merged = compact(root, target_mb=1, now=now).snapshot
                assert merged is not None
                expected[merged] = expected[current]
            elif step == "gc":
                collect_garbage(root, keep=number, grace=timedelta(hours=grace), now=now)
            else:
                {"pin": pin, "unpin": unpin, "rollback": rollback}[step](root, chosen)
            manifest = read_manifest(root)
            assert manifest.pinned <= {s.snapshot_id for s in manifest.listed}
            for snapshot in manifest.snapshots:
                assert users_in(root, snapshot.snapshot_id) == expected[snapshot.snapshot_id]
            still_readable = {
                name for name, retired in manifest.retired.items() if now - retired < timedelta(hours=grace)
            }
            assert still_readable <= {s.snapshot_id for s in manifest.snapshots}
        collect_garbage(root, keep=1, grace=timedelta(0), now=NOW)
        named = {ref.path for s in read_manifest(root).snapshots for ref in s.tables["user_features"]}
        assert {p.relative_to(root).as_posix() for p in root.rglob("*.parquet")} == named
        assert set(expected) >= {s.snapshot_id for s in read_manifest(root).listed}


@pytest.fixture
def littered(tmp_path: Path, feature_rows: Build, at: Clock) -> Path:
    """A warehouse with all that killed writers leave, beside what counts."""
    table = pa.table({"user_id": ["a"]})

    def put(name: str) -> Path:
        return Path(write_table(tmp_path / name, table).path)

    rows = feature_rows("user_features", [{"user_id": "a", "valid_from": at(1)}])
    publish(tmp_path, {"user_features": rows}, replace=False, now=NOW, lineage={})
    ledger = Ledger(tmp_path)
    events = put("behaviours/1.parquet")
    ledger.commit("ingest", {"behaviours": [events], "unpartitioned": [events]}, now=at(1))
    ledger.commit("partition", {"open": [put("open/1.parquet")]}, remove={"unpartitioned": [events]}, now=at(2))
    ledger.commit(
        "partition",
        {"open": [put("open/2.parquet")]},
        remove={"open": ["open/1.parquet"]},
        now=NOW - timedelta(hours=9),
    )
    for kept in ("knowledge/1.parquet", "embeddings/1.parquet", "adapters/000001-a/w.parquet", "mine/notes.parquet"):
        put(kept)
    orphan = put("requests/orphan.parquet")
    unpublished = put("features/user_features/00000009-unpublished.parquet")
    (tmp_path / "knowledge" / ".tmp-9.parquet-1-abcd").write_bytes(b"half")
    (tmp_path / ".tmp-run-abcd").mkdir()
    (tmp_path / ".tmp-run-abcd" / "piece.parquet").write_bytes(b"shuffled")
    (tmp_path / "adapters" / ".adapter-x").mkdir()
    for path, hours in ((orphan, 30), (unpublished, 1)):
        os.utime(path, (0, (NOW - timedelta(hours=hours)).timestamp()))
    return tmp_path


LITTER = {
    "half-written": 3,
    "in no snapshot": 1,
    "in no commit": 1,
    "superseded": 1,
}


def collect(root: Path, grace_hours: int, dry_run: bool = False) -> GarbageReport:
    return collect_garbage(root, keep=30, grace=timedelta(hours=grace_hours), now=NOW, dry_run=dry_run)


def test_what_no_record_names_goes_and_all_else_stays(littered: Path) -> None:
    report = collect(littered, grace_hours=0)
    assert report.by_reason == LITTER
    left = {p.relative_to(littered).as_posix() for p in littered.rglob("*") if p.is_file()}
    assert {p for p in left if p.endswith((".parquet", ".json"))} == {
        *("behaviours/1.parquet", "open/2.parquet", "knowledge/1.parquet", "embeddings/1.parquet"),
        *("adapters/000001-a/w.parquet", "mine/notes.parquet", "features/manifest.json"),
        *(ref.path for ref in read_manifest(littered).snapshots[0].tables["user_features"]),
        *(f"ledger/{n:08d}.json" for n in (1, 2, 3)),
    }
    assert not list(littered.rglob(".*"))
    again = collect(littered, grace_hours=0)
    assert (again.files, again.bytes, again.waiting_files) == (0, 0, 0)


def test_a_dry_run_says_the_same_and_removes_nothing(littered: Path) -> None:
    before = {p: p.stat().st_size for p in littered.rglob("*") if p.is_file()}
    report = collect(littered, grace_hours=0, dry_run=True)
    assert {p: p.stat().st_size for p in littered.rglob("*") if p.is_file()} == before
    real = collect(littered, grace_hours=0)
    assert (report.files, report.bytes, report.by_reason) == (real.files, real.bytes, real.by_reason)
    assert real.bytes == sum(before.values()) - sum(p.stat().st_size for p in littered.rglob("*") if p.is_file())


def test_what_a_reader_may_have_open_waits(littered: Path) -> None:
    """The superseded file was dropped nine hours ago; the orphan of `requests` is older, that of features is not."""
    report = collect(littered, grace_hours=10)
    assert report.by_reason == {"half-written": 3, "in no commit": 1}
    assert report.waiting_files == 2
    assert (littered / "open" / "1.parquet").exists()
    assert collect(littered, grace_hours=9).by_reason == {"superseded": 1}


def test_a_kill_between_manifest_and_removal_leaves_files_for_the_next_collection(
    tmp_path: Path, feature_rows: Build, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        rows = feature_rows("user_features", [{"user_id": f"u{n}", "valid_from": at(1)}])
        publish(tmp_path, {"user_features": rows}, replace=True, now=at(n), lineage={})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(garbage, "_garbage", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_garbage(tmp_path, keep=1, grace=timedelta(0), now=NOW)
    assert len(read_manifest(tmp_path).snapshots) == 1
    assert users_in(tmp_path, read_manifest(tmp_path).snapshots[0].snapshot_id) == ["u2"]
    report = collect_garbage(tmp_path, keep=1, grace=timedelta(0), now=NOW)
    assert report.by_reason == {"in no snapshot": 2}
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
