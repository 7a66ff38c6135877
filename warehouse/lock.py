"""One writer per warehouse, by an advisory lock on `lorestream.lock`; readers need no lock.

The kernel's lock decides, so a killed writer frees the warehouse by dying; the JSON in the file only says who holds
it. Between machines the lock is as good as the file system's `flock` (local disks, NFSv4 and Lustre with `-o flock`
are fine); should it fail there, the ledger's exclusive commits still let only one writer win.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path

import orjson

from warehouse.errors import UsageError, WriterBusy
from warehouse.store import remove_temporary

log = getLogger("lorestream.lock")

LOCK_NAME = "lorestream.lock"
# Held by the writer that is next, while it waits; by nobody where nobody waits.
TURN_NAME = "lorestream.turn"

_POLL_S = 0.1

_held: set[int] = set()
_closing_in_children = False


@contextmanager
def writer_lock(root: Path, owner: str, wait_s: float = 0.0, *, clean: bool = True) -> Iterator[None]:
    """Hold the warehouse `root` for the block, as `owner` (what to call this writer in another's error message).

    What killed writers left half-written is removed first, unless `clean` is false. Writers that wait for the lock get
    it in turn, so one that gives it back between two steps of its work, and waits for it again, lets the others in.

    Raises WriterBusy when another writer, in this process or any other, holds the lock or is waiting for it, and still
    does after `wait_s` seconds; UsageError where this user may not write.
    """
    descriptor = _open(root, LOCK_NAME)
    try:
        _take_in_turn(root, descriptor, wait_s)
        stale = _holder(descriptor)
        if stale:
            log.warning(
                "taking over the writer lock of %s: %s (pid %s on %s, since %s) ended without giving it back",
                root,
                *(stale.get(key, "unknown") for key in ("owner", "pid", "host", "since")),
            )
        _write(descriptor, owner)
        _close_in_children(descriptor)
        try:
            for leftover in remove_temporary(root) if clean else ():
                log.info("removed %s, left half-written by a killed writer", leftover)
            yield
        finally:
            # The file stays: unlinking it would let a third writer lock a new file beside one that is still held.
            os.ftruncate(descriptor, 0)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _open(root: Path, name: str) -> int:
    """A descriptor of a file to lock, which is made where it is missing."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return os.open(root / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            f"The warehouse {root} cannot be written: {error.strerror} ({error.filename}). "
            "Run as a user who may write there, or name another folder as `warehouse` in the configuration."
        ) from error


def _take_in_turn(root: Path, descriptor: int, wait_s: float) -> None:
    """Lock `descriptor`, once all have had it who were waiting before. Raises WriterBusy after `wait_s` seconds."""
    until = time.monotonic() + wait_s
    turn = _open(root, TURN_NAME)
    said = False
    try:
        # Whoever waits longest holds the turn; the others wait for that.
        for wanted in (turn, descriptor):
            while not _locked(wanted):
                busy = _busy(root, descriptor)
                if time.monotonic() >= until:
                    raise busy
                if not said:
                    log.info("waiting up to %.0f s for %s (pid %s)", wait_s, busy.owner, busy.pid)
                    said = True
                time.sleep(_POLL_S)
    finally:
        os.close(turn)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(root: Path, descriptor: int) -> WriterBusy:
    holder = _holder(descriptor)
    return WriterBusy(
        str(root),
        str(holder.get("owner", "another process")),
        str(holder.get("host", "an unknown host")),
        int(str(holder.get("pid", 0))),
        str(holder.get("since", "just now")),
    )


def _holder(descriptor: int) -> dict[str, object]:
    """What the holder wrote, or nothing when the lock was given back (or its holder has not come to write yet)."""
    try:
        value = orjson.loads(os.pread(descriptor, 4096, 0))
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _write(descriptor: int, owner: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "since": now}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, orjson.dumps(holder), 0)


def _close_in_children(descriptor: int) -> None:
    """Keep forked workers from holding the lock: it would outlive a killed writer for as long as they run."""
    global _closing_in_children
    _held.add(descriptor)
    if not _closing_in_children:
        os.register_at_fork(after_in_child=_drop_held)
        _closing_in_children = True


def _drop_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()
