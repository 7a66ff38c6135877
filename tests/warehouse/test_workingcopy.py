"""Working copies of a store: what reaches it, what a fresh machine finds, and what is refused."""

import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.object_stores import DyingObjects, Killed
from warehouse.catalog import CATALOG_NAME
from warehouse.errors import CopyDiverged, CorruptWarehouse, StoreMoved, StoreRefused, StoreUnavailable, UsageError
from warehouse.manifest import publish
from warehouse.objects import FsspecObjects
from warehouse.snapshot import MANIFEST_PATH
from warehouse.store import write_json
from warehouse.storeindex import newest_index, object_name
from warehouse.workingcopy import FOLDERS, RECORD_NAME, Traffic, WorkingCopy, working_copy

START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/warehouse"


def publish_nothing(root: Path, second: int = 0) -> None:
    """Give `root` a manifest of its own."""
    publish(root, {}, replace=False, now=START + timedelta(seconds=second), lineage={})


def put(root: Path, name: str, content: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def files(root: Path) -> dict[str, bytes]:
    """The warehouse in a folder, byte by byte."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def session(root: Path, url: str, work: Callable[[], None] = lambda: None) -> Traffic:
    with working_copy(root, url, "test") as copy:
        work()
    return copy.traffic


def test_a_fresh_folder_gets_every_file_as_it_was_and_only_what_it_lacks(tmp_path: Path, store_url: str) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    publish_nothing(a)
    put(a, "knowledge/one.parquet", b"texts")
    put(a, "adapters/000001-ab/weights.safetensors", b"weights")
    put(a, "ledger/00000001.json", b"{}")
    for left_out in ("knowledge/.tmp-two-1-2", "adapters/.adapter-xy/meta.json", "lorestream.lock", "notes.txt"):
        put(a, left_out, b"x")
    os.utime(a / "knowledge/one.parquet", ns=(1, 1_600_000_000_123_456_789))
    session(a, store_url)
    assert session(b, store_url).fetched == 4
    kept = {name: content for name, content in files(a).items() if "/." not in name}
    assert files(b) == kept
    # Garbage collection goes by it.
    assert (b / "knowledge/one.parquet").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (b / CATALOG_NAME).exists()
    assert not (b / "notes.txt").exists()
    again = session(b, store_url)
    assert (again.fetched, again.sent, again.generation) == (0, 0, 1)
    put(b, "knowledge/three.parquet", b"more")
    (b / "ledger/00000001.json").unlink()
    # What is gone without a writer's doing is fetched again; what a writer removes is removed everywhere.
    assert session(b, store_url, (b / "adapters/000001-ab/weights.safetensors").unlink).fetched == 1
    found = session(a, store_url)
    assert (found.fetched, found.removed_here) == (1, 1)
    assert files(a) == files(b) | {name: b"x" for name in files(a) if "/." in name}


@pytest.mark.parametrize("after", [False, True])
def test_a_push_that_is_killed_anywhere_leaves_the_generation_before_or_after_it(
    url: str, tmp_path: Path, after: bool
) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    outcomes = []
    for requests in range(1 if after else 0, 20):
        passing = a / f"knowledge/passing-{requests}.parquet"
        # The same machine goes on after each death.
        session(a, url, partial(put, a, passing.relative_to(a).as_posix(), b"0"))
        before = files(a)
        put(a, f"knowledge/{requests}.parquet", b"%d" % requests)
        put(a, "spending/2025-01-01.json", orjson.dumps(requests))
        passing.unlink()
        wanted = files(a)
        try:
            WorkingCopy(a, url, DyingObjects(url, requests, after)).push()
        except Killed:
            fresh = tmp_path / f"fresh-{requests}"
            copy = WorkingCopy(fresh, url, FsspecObjects(url))
            copy.pull()
            assert files(fresh) in (before, wanted)
            outcomes.append(files(fresh) == wanted)
        else:
            break
    assert set(outcomes) == {True, False}
    assert outcomes == sorted(outcomes)
    WorkingCopy(a, url, FsspecObjects(url)).settle()
    index = newest_index(FsspecObjects(url), url)
    assert index is not None
    assert {name for folder in FOLDERS for name in FsspecObjects(url).sizes(folder)} == index.objects()


STEPS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["add", "replace", "remove", "commit", "nothing"]),
        st.integers(0, 14),
        st.booleans(),
    ),
    max_size=8,
)


@settings(max_examples=20, deadline=None)
@given(steps=STEPS)
def test_whatever_dies_when_the_store_goes_from_whole_state_to_whole_state(
    steps: list[tuple[str, str, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two machines in turn, each of whose sessions may die at a request. What a third finds is what a push left."""
    folder, url = tmp_path_factory.mktemp("machines"), f"memory://{uuid.uuid4().hex}"
    put(folder / "a", "ledger/00000001.json", b"{}")
    WorkingCopy(folder / "a", url, FsspecObjects(url)).push()
    state = files(folder / "a")
    for number, (machine, change, requests, after) in enumerate(steps):
        root = folder / machine
        copy = WorkingCopy(root, url, DyingObjects(url, requests, after))
        worked: dict[str, bytes] | None = None
        try:
            copy.pull()
            # But for a record that this machine replaced when it died.
            assert files(root).items() >= {n: c for n, c in state.items() if "spending" not in n}.items()
            if change == "add":
                put(root, f"knowledge/{number}.parquet", b"%d" % number)
            elif change == "replace":
                put(root, "spending/2025.json", orjson.dumps(number))
            elif change == "commit":
                put(root, f"ledger/{number + 1:08d}.json", orjson.dumps({"commit": number}))
            elif change == "remove" and (texts := sorted(root.glob("knowledge/*"))):
                texts[0].unlink()
            worked = files(root)
            copy.push()
        except CopyDiverged:
            # It had not pushed all when the other went on.
            folder.joinpath(machine).rename(folder / f"lost-{number}")
        except Killed:
            pass
        copy = WorkingCopy(folder / f"fresh-{number}", url, FsspecObjects(url))
        copy.pull()
        found = files(folder / f"fresh-{number}")
        assert found in (state, worked)
        state = found


def test_what_did_not_reach_the_store_is_pushed_by_the_next_session_of_the_folder(url: str, tmp_path: Path) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    session(a, url)
    put(a, "knowledge/paid.parquet", b"paid")
    publish_nothing(a, 1)
    # Records that are replaced in place, too.
    write_json(a / "spending/2025.json", {"calls": 3})
    wanted = files(a)
    session(a, url)
    assert files(a) == wanted
    session(tmp_path / "b", url)
    assert files(tmp_path / "b") == wanted


@pytest.mark.parametrize("fetches", [0, 2, 4])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("starts", ["behind", "empty", "fresh"])
def test_an_interrupted_fetch_is_completed_whatever_the_store_did_since(
    url: str, tmp_path: Path, starts: str, fetches: int, goes_on: bool
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    publish_nothing(a)
    write_json(a / "spending/2025.json", {"calls": 0})
    session(a, url)
    if starts == "behind":
        session(b, url)
        # What killed writers left, which the store has gone on without.
        write_json(b / "spending/2025.json", {"calls": 99})
    elif starts == "empty":
        publish_nothing(b, 50)

    def work(second: int) -> None:
        for path in a.glob("knowledge/*"):
            path.unlink()
        for number in range(4):
            put(a, f"knowledge/{second}-{number}.parquet", b"texts")
        publish_nothing(a, second)
        write_json(a / "spending/2025.json", {"calls": second})

    session(a, url, partial(work, 1))
    with pytest.raises(Killed):
        # Of five files to fetch.
        WorkingCopy(b, url, DyingObjects(url, fetches)).pull()
    if goes_on:
        session(a, url, partial(work, 2))
    assert session(b, url).sent == 0
    assert files(b) == files(a)


def test_a_damaged_file_is_fetched_again_and_never_sent(url: str, tmp_path: Path) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    put(a, "knowledge/one.parquet", b"texts")
    put(a, "ledger/00000001.json", b"{}")
    session(a, url)
    whole = files(a)
    for name, content in (
        ("knowledge/one.parquet", b"te"),
        ("ledger/00000001.json", b"[]"),
        (MANIFEST_PATH, whole[MANIFEST_PATH][:-9]),
    ):
        put(a, name, content)
        found = session(a, url)
        assert (found.fetched, found.sent) == (1, 0)
        assert files(a) == whole


def test_a_folder_that_kept_something_the_store_went_on_without_is_refused(url: str, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    publish_nothing(a)
    session(a, url)
    put(a, "knowledge/paid-a.parquet", b"paid")
    session(b, url, lambda: put(b, "knowledge/paid-b.parquet", b"paid"))
    with pytest.raises(CopyDiverged, match=r"knowledge/paid-a.*generations 2 to 2.*move the folder away: 1 segments"):
        session(a, url)
    assert (a / "knowledge/paid-a.parquet").exists()
    a.rename(tmp_path / "away")
    session(a, url)
    assert files(a) == files(b)


def test_a_push_after_another_machines_takes_nothing_over(url: str, tmp_path: Path) -> None:
    """A machine that slept longer than its lease and wakes."""
    a, b = tmp_path / "a", tmp_path / "b"
    publish_nothing(a)
    sleeper = WorkingCopy(a, url, FsspecObjects(url))
    sleeper.push()
    session(b, url, lambda: put(b, "knowledge/paid.parquet", b"paid"))
    put(a, "knowledge/late.parquet", b"late")
    with pytest.raises(StoreMoved, match=r"Generation 2 of .* was written by another machine") as caught:
        sleeper.push()
    assert caught.value.exit_code == 3
    session(tmp_path / "c", url)
    assert files(tmp_path / "c") == files(b)


@pytest.mark.parametrize("same_session", [True, False])
@pytest.mark.parametrize("records", [True, False])
def test_a_push_that_came_through_although_it_seemed_to_fail_is_this_folders_own(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_session: bool, records: bool
) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    session(a, url)
    copy = WorkingCopy(a, url, FsspecObjects(url))
    put(a, "knowledge/one.parquet", b"1")
    with monkeypatch.context() as patch:
        patch.setattr("warehouse.numbered.newest", _no_answer)
        with pytest.raises(StoreUnavailable):
            copy.push()
    put(a, "knowledge/two.parquet", b"2")
    if records:
        write_json(a / "spending/2025.json", {"calls": 2})
    if same_session:
        copy.push()
    else:
        session(a, url)
    session(tmp_path / "b", url)
    assert files(tmp_path / "b") == files(a)
    assert (a / "knowledge/two.parquet").exists()


def _no_answer(*_: object) -> int:
    raise StoreUnavailable("memory://x", "no answer")


def test_a_folder_that_is_no_copy_of_the_store_is_refused(url: str, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    publish_nothing(a)
    session(a, url)
    publish_nothing(b, 5)
    put(b, "knowledge/own.parquet", b"own")
    with pytest.raises(CopyDiverged, match=r"holds a warehouse that is no copy of the store's.*Name another folder"):
        session(b, url)
    session(b, f"{url}-other")
    with pytest.raises(CopyDiverged, match="the store holds another warehouse"):
        session(b, url)


def test_an_empty_warehouse_gives_way_to_the_stores(url: str, tmp_path: Path) -> None:
    """`lorestream init` on a new machine, and then the store of the old one."""
    a, b = tmp_path / "a", tmp_path / "b"
    for root in (a, b):
        publish_nothing(root, 0 if root == a else 9)
        put(root, "ledger/00000001.json", root.name.encode())
    session(a, url)
    session(b, url)
    assert files(b) == files(a)


def test_a_store_that_was_emptied_or_set_back_is_refused(url: str, tmp_path: Path) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    session(a, url)
    with pytest.raises(CopyDiverged, match="copy of generation 1, and the store is empty"):
        session(a, f"{url}-mistyped")
    objects = FsspecObjects(url)
    backup = objects.read("index/00000001.json")
    session(a, url, lambda: put(a, "knowledge/one.parquet", b"1"))
    session(a, url, lambda: put(a, "knowledge/two.parquet", b"2"))
    for name in objects.sizes("index"):
        objects.remove(name)
    objects.write("index/00000001.json", backup)
    with pytest.raises(CopyDiverged, match="copy of generation 3, and the store's generation 1 is not one that came"):
        session(a, url)


def test_a_first_push_whose_end_was_not_noted_is_no_other_warehouse(url: str, tmp_path: Path) -> None:
    a = tmp_path / "a"
    publish_nothing(a)
    put(a, "knowledge/one.parquet", b"1")
    session(a, url)
    (a / RECORD_NAME).unlink()
    assert session(a, url).sent == 0


def test_a_store_of_a_newer_version_or_a_damaged_index_is_named(url: str, tmp_path: Path) -> None:
    objects = FsspecObjects(url)
    objects.write("index/00000004.json", orjson.dumps({"schema_version": 99}))
    with pytest.raises(UsageError, match=r"index/00000004.json has schema version 99.*Upgrade"):
        session(tmp_path, url)
    objects.write("index/00000004.json", b"{")
    with pytest.raises(CorruptWarehouse, match=r"index/00000004.json is not the index of a store"):
        session(tmp_path, url)


def test_a_missing_or_changed_object_is_named_and_put_again_by_who_has_the_file(url: str, tmp_path: Path) -> None:
    a, b, objects = tmp_path / "a", tmp_path / "b", FsspecObjects(url)
    publish_nothing(a)
    put(a, "knowledge/one.parquet", b"texts")
    session(a, url)
    index = newest_index(objects, url)
    assert index is not None
    name = object_name("knowledge/one.parquet", index.files["knowledge/one.parquet"].digest)
    objects.write(name, b"other")
    with pytest.raises(CorruptWarehouse, match=f"{name} is not what the store's index describes"):
        session(b, url)
    objects.remove(name)
    with pytest.raises(CorruptWarehouse, match=f"{name} is missing"):
        session(b, url)
    assert not (b / "knowledge/one.parquet").exists()
    with working_copy(a, url, "test") as copy:
        copy.settle()
    assert session(b, url).fetched > 0
    assert files(b) == files(a)


def test_what_a_failed_block_finished_has_reached_the_store(url: str, tmp_path: Path) -> None:
    a = tmp_path / "a"
    publish_nothing(a)

    def fail() -> None:
        put(a, "knowledge/paid.parquet", b"paid")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session(a, url, fail)
    session(tmp_path / "b", url)
    assert (tmp_path / "b/knowledge/paid.parquet").read_bytes() == b"paid"


class Failing:
    """A filesystem whose every request fails in one way."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, _name: str) -> object:
        def fail(*_arguments: object, **_named: object) -> None:
            raise self._error

        return fail


class NoCredentialsError(Exception):
    """As botocore calls it, where it is no PermissionError either."""


@pytest.mark.parametrize(
    ("error", "wanted", "message"),
    [
        (ConnectionRefusedError("nobody there"), StoreUnavailable, "cannot be reached .*nobody there.*run the same"),
        (TimeoutError(), StoreUnavailable, "cannot be reached"),
        (PermissionError("InvalidAccessKeyId"), StoreRefused, "InvalidAccessKeyId.*credentials"),
        (NoCredentialsError("none found"), StoreRefused, "none found.*credentials"),
    ],
)
def test_a_store_that_does_not_answer_or_answers_no_is_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, wanted: type[Exception], message: str
) -> None:
    publish_nothing(tmp_path)
    make = FsspecObjects.__init__

    def failing(self: FsspecObjects, url: str) -> None:
        make(self, url)
        self._fs = Failing(error)

    monkeypatch.setattr(FsspecObjects, "__init__", failing)
    with pytest.raises(wanted, match=message):
        session(tmp_path, url)


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path, s3_url: str) -> None:
    publish_nothing(tmp_path)
    with pytest.raises(StoreRefused, match="bucket"):
        session(tmp_path, f"s3://no-such-{uuid.uuid4().hex}/warehouse")


def test_an_endpoint_where_nobody_answers_is_named(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    # By default botocore and s3fs both ask again, with pauses.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        session(tmp_path, s3_url)
    s3fs.S3FileSystem.clear_instance_cache()
