"""One writer per store, on whatever machine: a lease that is renewed while its holder lives and ends by itself.

The lease is a numbered object, `lease/00000007.json`: the newest says who holds it and until when, and whoever takes it
over creates the next number, which only one can. Machines' clocks must agree within `CLOCKS_AGREE`; if they do not, or
a holder stops for longer than its lease and wakes, two believe that they hold it. Then the store's index decides, which
only one of them can write on (`warehouse.workingcopy`): the other is told so and nothing of the first is lost.

On a store without conditional writes two machines that begin within the same moment may both hold the lease, and of two
generations that both write the second may replace the first: what the first was paid for is then in its folder alone.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from logging import getLogger
from secrets import token_hex
from threading import Event, Thread
from typing import Any

import orjson

from warehouse.errors import CorruptWarehouse, LorestreamError, WriterBusy
from warehouse.numbered import claim, newest, object_of, remove_before
from warehouse.objects import Objects
from warehouse.store import json_bytes

log = getLogger("lorestream.store")

FOLDER = "lease"
# After the death of a machine the next one waits for so long.
LEASE = timedelta(seconds=120)
CLOCKS_AGREE = timedelta(seconds=60)
_RENEWALS = 4
_POLL_S = 5.0


@dataclass(frozen=True)
class Holder:
    """Who holds the lease: `copy` names the local folder it works on, `token` this holding and no other."""

    owner: str
    host: str
    pid: int
    copy: str
    token: str
    since: datetime
    until: datetime
    released: bool = False

    def is_over(self, now: datetime) -> bool:
        """Whether another may take it over."""
        return self.released or now > self.until + CLOCKS_AGREE

    def is_same_place(self, other: "Holder") -> bool:
        """Whether it worked on the same folder of the same machine."""
        return (self.copy, self.host) == (other.copy, other.host)


@contextmanager
def lease(objects: Objects, url: str, owner: str, copy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the store's lease for the block. Call it under the writer lock of the local folder that `copy` names.

    A lease that a killed process of the same folder left is taken over at once: it had that lock. Raises WriterBusy
    when another machine holds the lease, and still does after `wait_s` seconds.
    """
    now = datetime.now(UTC)
    me = Holder(owner, socket.gethostname(), os.getpid(), copy, token_hex(8), now, now + LEASE)
    number, me = _acquire(objects, url, me, wait_s)
    if objects.exclusive:
        objects.exclusive = _keeps_conditions(objects, number, me)
    if not objects.exclusive:
        log.warning(
            "%s has no conditional writes: see by other means that no two machines begin to write at the same moment",
            url,
        )
    remove_before(objects, FOLDER, number)
    over = Event()
    keeper = Thread(target=_renew, args=(objects, url, number, me, over), name="lorestream-lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        try:
            objects.write(object_of(FOLDER, number), _content(replace(me, released=True)))
        except LorestreamError as error:
            log.warning("the lease of %s could not be given back and ends by itself: %s", url, error)


def _acquire(objects: Objects, url: str, me: Holder, wait_s: float) -> tuple[int, Holder]:
    give_up, said = time.monotonic() + wait_s, False
    while True:
        number, holder = _holder(objects, url)
        now = datetime.now(UTC)
        if holder is None or holder.is_over(now) or holder.is_same_place(me):
            me = replace(me, since=now, until=now + LEASE)
            try:
                claim(objects, FOLDER, number + 1, _content(me))
            except FileExistsError:
                continue
            if holder is not None and not holder.released:
                log.warning(
                    "taking over the lease of %s: %s (pid %d on %s, since %s) ended without giving it back",
                    *(url, holder.owner, holder.pid, holder.host, holder.since.isoformat(timespec="seconds")),
                )
            return number + 1, me
        left = give_up - time.monotonic()
        if left <= 0:
            since, until = (t.isoformat(timespec="seconds") for t in (holder.since, holder.until + CLOCKS_AGREE))
            raise WriterBusy(url, holder.owner, holder.host, holder.pid, since, until)
        if not said:
            log.info("waiting up to %.0f s for %s (pid %d on %s)", left, holder.owner, holder.pid, holder.host)
            said = True
        time.sleep(min(_POLL_S, left))


def _keeps_conditions(objects: Objects, number: int, me: Holder) -> bool:
    """Whether the store refuses to create what exists: some that speak S3's protocol pass over the condition."""
    try:
        objects.create(object_of(FOLDER, number), _content(me))
    except FileExistsError:
        return True
    return False


def _holder(objects: Objects, url: str) -> tuple[int, Holder | None]:
    """The newest lease and its number; nobody and 0 before the first."""
    while number := newest(objects, FOLDER):
        try:
            content = objects.read(object_of(FOLDER, number))
        except FileNotFoundError:
            # The next holder has removed it in between.
            continue
        try:
            value: dict[str, Any] = orjson.loads(content)
            times = {name: datetime.fromisoformat(value[name]) for name in ("since", "until")}
            return number, Holder(**{**value, **times})
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CorruptWarehouse(
                f"{url}/{object_of(FOLDER, number)} is no lease ({error!r}). Remove that object, when nobody writes."
            ) from error
    return 0, None


def _renew(objects: Objects, url: str, number: int, me: Holder, over: Event) -> None:
    """Move the end of the lease on until the block is `over`, or another has taken it."""
    while not over.wait(LEASE.total_seconds() / _RENEWALS):
        try:
            if newest(objects, FOLDER) != number:
                log.warning("another writer has taken over the lease of %s; this one's next write to it fails", url)
                return
            objects.write(object_of(FOLDER, number), _content(replace(me, until=datetime.now(UTC) + LEASE)))
        except LorestreamError as error:
            log.warning("the lease of %s could not be renewed, which is tried again: %s", url, error)


def _content(holder: Holder) -> bytes:
    return json_bytes(holder)
