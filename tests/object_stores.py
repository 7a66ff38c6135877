"""Object stores for tests: fsspec's `memory://`, a local S3 server, and machines that die at a chosen request."""

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from warehouse.objects import FsspecObjects

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Killed(BaseException):
    """The machine is gone: whatever would still be done for order's sake is not done either."""


class DyingObjects:
    """Objects that a machine can reach for `requests` more requests which change something; then it dies.

    With `after` it dies once the last of them was done, its answer lost.
    """

    def __init__(self, url: str, requests: int, after: bool = False) -> None:
        self._objects, self._left, self._after = FsspecObjects(url), requests, after
        self.exclusive = self._objects.exclusive
        self.dead = False

    def read(self, name: str) -> bytes:
        return self._alive().read(name)

    def fetch(self, name: str, into: Path) -> None:
        self._counted(lambda: self._objects.fetch(name, into))

    def write(self, name: str, content: bytes) -> None:
        self._counted(lambda: self._objects.write(name, content))

    def create(self, name: str, content: bytes) -> None:
        self._counted(lambda: self._objects.create(name, content))

    def store(self, name: str, file: Path) -> None:
        self._counted(lambda: self._objects.store(name, file))

    def sizes(self, folder: str) -> dict[str, int]:
        return self._alive().sizes(folder)

    def remove(self, name: str) -> None:
        self._counted(lambda: self._objects.remove(name))

    def _alive(self) -> FsspecObjects:
        if self.dead:
            raise Killed
        return self._objects

    def _counted(self, request: Callable[[], None]) -> None:
        self._alive()
        self._left -= 1
        self.dead = self._left < 0 or (self._after and self._left == 0)
        if not self.dead or self._left == 0:
            request()
        if self.dead:
            raise Killed


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a local S3 server, which holds everything in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # No thread of this process: vLLM looks at the names in all loaded modules, and stumbles over Flask's.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, f"{command} ended with {server.returncode}"
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place in a bucket of its own; child processes find the server by their environment."""
    for variable, value in {"AWS_ENDPOINT_URL": s3_endpoint, **S3_ENVIRONMENT}.items():
        monkeypatch.setenv(variable, value)
    import s3fs

    name = uuid.uuid4().hex
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}/warehouse"


@pytest.fixture(params=["memory", "s3"])
def store_url(request: pytest.FixtureRequest) -> str:
    """An empty place for a warehouse."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/warehouse"
    url: str = request.getfixturevalue("s3_url")
    return url


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end so soon after the death of a machine that a test can wait for it."""
    monkeypatch.setattr("warehouse.lease.LEASE", timedelta(seconds=0.4))
    monkeypatch.setattr("warehouse.lease.CLOCKS_AGREE", timedelta(0))
    monkeypatch.setattr("warehouse.lease._POLL_S", 0.05)
