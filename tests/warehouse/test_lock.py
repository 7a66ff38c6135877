import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Barrier, Thread, Timer

import pytest

from warehouse.errors import UsageError, WriterBusy
from warehouse.lock import LOCK_NAME, writer_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from warehouse.lock import writer_lock
with writer_lock(Path(sys.argv[1]), "night run"):
    forked = len(sys.argv) > 2 and os.fork()
    if not forked:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock, and the pid of the child it then forked, or else its own."""
    command = [sys.executable, "-c", HOLDER, str(root), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_second_writer_is_told_at_once_who_is_writing(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        with pytest.raises(WriterBusy) as caught, writer_lock(tmp_path, "me"):
            pytest.fail("both writers hold the lock")
        assert (caught.value.owner, caught.value.pid) == ("night run", process.pid)
        assert caught.value.exit_code == 3
        assert f"night run (pid {process.pid} on {os.uname().nodename}, since 20" in str(caught.value)


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with writer_lock(tmp_path, "first"):
        with pytest.raises(WriterBusy, match="first"), writer_lock(tmp_path, "second"):
            pytest.fail("both writers hold the lock")
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["owner"] == "first"


def test_the_lock_is_given_back_after_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(tmp_path, "first"):
        raise ZeroDivisionError
    with writer_lock(tmp_path, "second"):
        pass
    assert not caplog.records


def test_the_lock_of_a_killed_writer_is_taken_over_with_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with holder(tmp_path) as (process, _):
        process.send_signal(signal.SIGKILL)
        process.wait()
    with writer_lock(tmp_path, "next run"):
        assert json.loads((tmp_path / LOCK_NAME).read_bytes())["owner"] == "next run"
    (record,) = caplog.records
    assert f"night run (pid {process.pid}" in record.getMessage()
    assert "ended without giving it back" in record.getMessage()


def test_children_that_outlive_a_killed_writer_do_not_hold_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)
        try:
            with writer_lock(tmp_path, "next run"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_unreadable_lock_file_still_locks(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_bytes(b"\xff{")
    with writer_lock(tmp_path, "first"):
        (tmp_path / LOCK_NAME).write_bytes(b"")
        with pytest.raises(WriterBusy, match="another process"), writer_lock(tmp_path, "second"):
            pytest.fail("both writers hold the lock")


def test_a_warehouse_that_cannot_be_written_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "b.csv"
    file.write_text("not a warehouse")
    with pytest.raises(UsageError, match=r"b\.csv cannot be written: File exists"), writer_lock(file, "me"):
        pytest.fail("a file was locked as a warehouse")


def test_no_permission_to_write_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom no mode keeps from writing.
    def denied(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(UsageError, match=r"cannot be written: Permission denied") as caught, writer_lock(tmp_path, "x"):
        pytest.fail("the lock was taken")
    assert caught.value.exit_code == 2


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "knowledge").mkdir()
    leftover = tmp_path / "knowledge" / ".tmp-one.parquet-17-abcd"
    finished = tmp_path / "knowledge" / "one.parquet"
    for file in (leftover, finished):
        file.write_bytes(b"x")
    with writer_lock(tmp_path, "me"):
        assert not leftover.exists()
    assert finished.exists()


def test_a_writer_that_may_wait_gets_the_lock_when_it_is_given_back(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        with pytest.raises(WriterBusy, match="night run"), writer_lock(tmp_path, "impatient", wait_s=0.3):
            pytest.fail("both writers hold the lock")
        Timer(0.3, process.kill).start()
        with writer_lock(tmp_path, "patient", wait_s=60):
            assert json.loads((tmp_path / LOCK_NAME).read_bytes())["owner"] == "patient"


def test_writers_that_give_the_lock_back_between_steps_take_turns(tmp_path: Path) -> None:
    """One has long steps and no pause between them; without turns it would have the lock again before the other."""
    order: list[str] = []
    started = Barrier(2)

    def write(name: str, steps: int) -> None:
        started.wait()
        for _ in range(steps):
            with writer_lock(tmp_path, name, wait_s=60):
                order.append(name)
                time.sleep(0.3)

    threads = [Thread(target=write, args=("a", 4)), Thread(target=write, args=("b", 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == ["a"] * 4 + ["b"] * 4
    assert all(first != second for first, second in pairwise(order)), order
