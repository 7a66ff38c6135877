"""Reading the public tables of a store through a cache."""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

import lorestream
from tests.object_stores import DyingObjects, Killed
from warehouse.errors import CorruptWarehouse, UsageError, WarehouseNotFound
from warehouse.garbage import collect_garbage
from warehouse.manifest import publish, rollback
from warehouse.objects import FsspecObjects
from warehouse.workingcopy import Traffic, WorkingCopy, working_copy

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


@pytest.fixture
def add(tmp_path: Path, feature_rows: Build, at: Clock) -> Callable[..., str]:
    """`add("a")`: publish a row of that user to the warehouse in `tmp_path / "w"`, and give the snapshot's id."""
    count = iter(range(100))

    def publish_user(user: str, replace: bool = False, keep: int | None = None) -> str:
        number = next(count)
        row = {"user_id": user, "valid_from": at(1), "created_at": at(number), "augment": [float(number), 0.0]}
        rows = feature_rows("user_features", [row])
        made = publish(tmp_path / "w", {"user_features": rows}, replace=replace, now=at(number), lineage={}, keep=keep)
        return made.snapshot_id

    return publish_user


def pushed(root: Path, url: str, work: Callable[[], object] = lambda: None) -> Traffic:
    """What a writer has sent to the store that did `work`."""
    with working_copy(root, url, "test") as copy:
        work()
        copy.settle()
    return copy.traffic


def objects_of(url: str, table: str) -> list[str]:
    return sorted(FsspecObjects(url).sizes(f"features/{table}"))


def users(place: str | Path, cache: Path, snapshot: str | None = None) -> list[str]:
    table = lorestream.open(place, snapshot, cache=cache).table("user_features", ["user_id"]).to_arrow()
    return sorted(table["user_id"].to_pylist())


def test_a_store_reads_and_joins_like_the_warehouse(
    tmp_path: Path, store_url: str, add: Callable[..., str], at: Clock
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    first = add("a")
    assert pushed(root, store_url).generation == 1
    assert users(store_url, cache) == ["a"]
    second = add("b")
    assert users(store_url, cache) == ["a"]
    # A file of rows, and the manifest.
    assert pushed(root, store_url).sent == 2
    shown = pa.table({"user_id": ["a", "b", "x"], "ts": [at(9)] * 3})
    there, here = lorestream.open(store_url, cache=cache), lorestream.open(root)
    assert there.current_snapshot == second
    assert there.join(shown, item=None).to_arrow().equals(here.join(shown, item=None).to_arrow())
    assert there.table("user_features").to_arrow().equals(here.table("user_features").to_arrow())
    assert len(there.table("user_features", snapshot=first)) == 1
    assert pushed(root, store_url) == Traffic(generation=2)
    rollback(root, first)
    pushed(root, store_url)
    assert users(store_url, cache) == ["a"]


def test_files_of_forgotten_snapshots_leave_the_store_and_the_cache(
    tmp_path: Path, store_url: str, add: Callable[..., str], at: Clock
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    add("a")
    pushed(root, store_url)
    assert users(store_url, cache) == ["a"]
    add("b", replace=True, keep=1)
    pushed(root, store_url)
    # Retired, but not forgotten: a reader may have it open.
    assert len(objects_of(store_url, "user_features")) == 2
    pushed(root, store_url, lambda: collect_garbage(root, keep=1, grace=timedelta(0), now=at(99)))
    assert len(objects_of(store_url, "user_features")) == 1
    assert users(store_url, cache) == ["b"]
    assert len(list(cache.rglob("*.parquet"))) == 1


def test_readers_of_an_interrupted_push_see_the_snapshot_before_or_after(
    tmp_path: Path, store_url: str, add: Callable[..., str]
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    add("a")
    pushed(root, store_url)
    died_before, died_after = 0, 0
    for requests, user in enumerate("bcdefgh"):
        before = users(root, cache)
        add(user)
        after = [*before, user]
        objects = DyingObjects(store_url, requests)
        try:
            WorkingCopy(root, store_url, objects).push()
        except Killed:
            seen = users(store_url, cache)
            assert seen in (before, after)
            died_before, died_after = died_before + (seen == before), died_after + (seen == after)
        pushed(root, store_url)
        assert users(store_url, cache) == users(root, cache) == after
    assert died_before >= 2
    assert died_after >= 1


def test_a_reader_that_meets_a_publication_reads_the_newer_snapshot(
    tmp_path: Path, store_url: str, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    add("a")
    pushed(root, store_url)
    read = FsspecObjects.read

    def read_late(self: FsspecObjects, name: str) -> bytes:
        if name.startswith("features/manifest"):
            monkeypatch.setattr(FsspecObjects, "read", read)
            add("b")
            pushed(root, store_url)
        return read(self, name)

    monkeypatch.setattr(FsspecObjects, "read", read_late)
    assert users(store_url, cache) == ["a", "b"]


def test_a_damaged_or_missing_object_is_named_and_put_again(
    tmp_path: Path, store_url: str, add: Callable[..., str]
) -> None:
    root, objects = tmp_path / "w", FsspecObjects(store_url)
    add("a")
    pushed(root, store_url)
    [path] = objects_of(store_url, "user_features")
    content = objects.read(path)
    objects.write(path, content[:-1] + b"?")
    with pytest.raises(CorruptWarehouse, match=rf"{path} is not what.*describes.*lorestream sync"):
        lorestream.open(store_url, cache=tmp_path / "cache")
    objects.remove(path)
    with pytest.raises(CorruptWarehouse, match=rf"{path} is missing"):
        lorestream.open(store_url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    assert pushed(root, store_url).sent == 1
    assert users(store_url, tmp_path / "cache") == ["a"]


def test_a_place_without_a_warehouse_is_refused(tmp_path: Path, store_url: str) -> None:
    with pytest.raises(WarehouseNotFound, match="no warehouse at"):
        lorestream.open(store_url, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("place", "message"), [("file:///x", "plain path"), ("nonsense://x", "nonsense.*cannot be opened")]
)
def test_a_url_that_will_not_do_is_refused(place: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lorestream.open(place)


def test_without_fsspec_a_url_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"memory://x needs fsspec: pip install 'lorestream\[objects\]'"):
        lorestream.open("memory://x")
