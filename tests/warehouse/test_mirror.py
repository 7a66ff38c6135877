"""Mirrors on fsspec's `memory://`, and on a local S3 server where moto and s3fs are installed."""

import importlib.util
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

import lorestream
from warehouse.errors import CorruptWarehouse, UsageError, WarehouseNotFound
from warehouse.garbage import collect_garbage
from warehouse.manifest import publish, rollback
from warehouse.mirror import mirror
from warehouse.objects import FsspecObjects
from warehouse.snapshot import MANIFEST_PATH

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """A local S3 server, in memory."""
    for package in ("moto", "s3fs", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'moto[server,s3]' s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.25)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place for a mirror."""
    name = uuid.uuid4().hex
    if request.param == "memory":
        pytest.importorskip("fsspec")
        return f"memory://{name}/warehouse"
    for variable, value in {
        "AWS_ENDPOINT_URL": request.getfixturevalue("s3_endpoint"),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(variable, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/warehouse"


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


def users(place: str | Path, cache: Path, snapshot: str | None = None) -> list[str]:
    table = lorestream.open(place, snapshot, cache=cache).table("user_features", ["user_id"]).to_arrow()
    return sorted(table["user_id"].to_pylist())


def test_a_mirror_reads_and_joins_like_the_warehouse(
    tmp_path: Path, url: str, add: Callable[..., str], at: Clock
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    first = add("a")
    report = mirror(root, FsspecObjects(url))
    assert (report.snapshot, report.copied, report.removed) == (first, 1, 0)
    assert users(url, cache) == ["a"]
    second = add("b")
    assert users(url, cache) == ["a"]
    assert mirror(root, FsspecObjects(url)).copied == 1
    shown = pa.table({"user_id": ["a", "b", "x"], "ts": [at(9)] * 3})
    there, here = lorestream.open(url, cache=cache), lorestream.open(root)
    assert there.current_snapshot == second
    assert there.join(shown, item=None).to_arrow().equals(here.join(shown, item=None).to_arrow())
    assert there.table("user_features").to_arrow().equals(here.table("user_features").to_arrow())
    assert len(there.table("user_features", snapshot=first)) == 1
    again = mirror(root, FsspecObjects(url))
    assert (again.copied, again.bytes) == (0, 0)
    rollback(root, first)
    mirror(root, FsspecObjects(url))
    assert users(url, cache) == ["a"]


def test_files_of_forgotten_snapshots_leave_the_mirror_and_the_cache(
    tmp_path: Path, url: str, add: Callable[..., str], at: Clock
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    add("a")
    mirror(root, FsspecObjects(url))
    assert users(url, cache) == ["a"]
    add("b", replace=True, keep=1)
    # Retired, but not forgotten: a reader may have it open.
    assert mirror(root, FsspecObjects(url)).removed == 0
    collect_garbage(root, keep=1, grace=timedelta(0), now=at(99))
    assert mirror(root, FsspecObjects(url)).removed == 1
    assert users(url, cache) == ["b"]
    assert len(list(cache.rglob("*.parquet"))) == 1
    assert set(FsspecObjects(url).sizes("features")) == {
        MANIFEST_PATH,
        *(p.relative_to(root).as_posix() for p in root.rglob("*.parquet")),
    }


def test_readers_of_an_interrupted_mirror_see_the_snapshot_before(
    tmp_path: Path, url: str, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "w", tmp_path / "cache"
    add("a")
    mirror(root, FsspecObjects(url))
    add("b")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FsspecObjects, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            mirror(root, FsspecObjects(url))
    assert users(url, cache) == ["a"]
    assert mirror(root, FsspecObjects(url)).copied == 0
    assert users(url, cache) == ["a", "b"]


def test_a_damaged_or_missing_object_is_named(tmp_path: Path, url: str, add: Callable[..., str]) -> None:
    root = tmp_path / "w"
    path = f"features/user_features/{add('a')}.parquet"
    objects = FsspecObjects(url)
    mirror(root, objects)
    content = objects.read(path)
    objects.write(path, content[:-1] + b"?")
    with pytest.raises(CorruptWarehouse, match=rf"{path} is not what the manifest describes.*lorestream mirror"):
        lorestream.open(url, cache=tmp_path / "cache")
    objects.remove(path)
    with pytest.raises(CorruptWarehouse, match=rf"{path} is missing"):
        lorestream.open(url, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.parquet"))
    assert mirror(root, objects).copied == 1
    assert users(url, tmp_path / "cache") == ["a"]


def test_a_place_without_a_warehouse_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(WarehouseNotFound, match="no warehouse at"):
        lorestream.open(url, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("place", "message"), [("file:///x", "plain path"), ("nonsense://x", "nonsense.*cannot be opened")]
)
def test_a_url_that_will_not_do_is_refused(place: str, message: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UsageError, match=message):
        lorestream.open(place)
