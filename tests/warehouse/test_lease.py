"""One writer per store: leases on `memory://` and on a local S3 server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from tests.object_stores import DyingObjects, Killed
from warehouse.errors import CorruptWarehouse, StoreUnavailable, WriterBusy
from warehouse.lease import CLOCKS_AGREE, FOLDER, LEASE, Holder, lease
from warehouse.numbered import claim, newest, object_of, remove_before
from warehouse.objects import FsspecObjects


def holding(objects: FsspecObjects) -> dict[str, object]:
    """What the newest lease says."""
    found: dict[str, object] = orjson.loads(objects.read(object_of(FOLDER, newest(objects, FOLDER))))
    return found


@contextmanager
def dead_holder(url: str, copy: str) -> Iterator[None]:
    """A machine that has taken the lease and died."""
    objects = DyingObjects(url, 1)
    with suppress(Killed), lease(objects, url, "night run", copy):
        objects.dead = True
    yield


def test_a_second_machine_is_told_who_is_writing_and_when_that_ends_at_the_latest(store_url: str) -> None:
    objects = FsspecObjects(store_url)
    with lease(objects, store_url, "night run", "here"):
        with pytest.raises(WriterBusy) as caught, lease(objects, store_url, "me", "there"):
            pytest.fail("both machines hold the lease")
        assert (caught.value.path, caught.value.owner, caught.value.exit_code) == (store_url, "night run", 3)
        left = datetime.fromisoformat(caught.value.until) - datetime.now(UTC)
        assert LEASE < left <= LEASE + CLOCKS_AGREE
        assert "ends by itself at 20" in str(caught.value)
    with lease(objects, store_url, "me", "there"):
        assert holding(objects)["owner"] == "me"
    assert holding(objects)["released"] is True


def test_the_lease_is_given_back_after_an_error(store_url: str) -> None:
    objects = FsspecObjects(store_url)
    with pytest.raises(ZeroDivisionError), lease(objects, store_url, "first", "here"):
        raise ZeroDivisionError
    with lease(objects, store_url, "second", "there"):
        pass


def test_the_lease_of_a_dead_machine_ends_and_is_taken_over_with_a_log_line(
    store_url: str, short_leases: None, caplog: pytest.LogCaptureFixture
) -> None:
    objects = FsspecObjects(store_url)
    with dead_holder(store_url, "here"):
        with pytest.raises(WriterBusy), lease(objects, store_url, "impatient", "there"):
            pytest.fail("a lease that runs was taken over")
        with lease(objects, store_url, "patient", "there", wait_s=60):
            assert holding(objects)["owner"] == "patient"
    assert "night run" in caplog.text
    assert "ended without giving it back" in caplog.text


def test_the_lease_of_a_killed_process_of_the_same_folder_is_taken_over_at_once(store_url: str) -> None:
    with dead_holder(store_url, "here"), lease(FsspecObjects(store_url), store_url, "again", "here"):
        assert holding(FsspecObjects(store_url))["owner"] == "again"


def test_a_lease_is_renewed_while_its_holder_lives(store_url: str, short_leases: None) -> None:
    objects = FsspecObjects(store_url)
    with lease(objects, store_url, "long run", "here"):
        for _ in range(6):
            time.sleep(0.2)
            with pytest.raises(WriterBusy), lease(objects, store_url, "me", "there"):
                pytest.fail("the lease of a living holder was taken over")


def test_a_holder_whose_lease_was_taken_over_does_not_touch_the_new_one(store_url: str, short_leases: None) -> None:
    objects = FsspecObjects(store_url)
    with lease(objects, store_url, "sleeper", "here"):
        now = datetime.now(UTC)
        other = Holder("other", "elsewhere", 1, "there", "t", now, now + timedelta(hours=1))
        claim(objects, FOLDER, newest(objects, FOLDER) + 1, orjson.dumps(other))
        time.sleep(0.3)
    assert holding(objects) == orjson.loads(orjson.dumps(other))


class AtomicObjects(FsspecObjects):
    """What S3 and GCS do, and neither `memory://` between threads nor the local server: look and write in one step."""

    _guard = threading.Lock()

    def create(self, name: str, content: bytes) -> None:
        with self._guard:
            super().create(name, content)


def test_of_machines_that_begin_at_once_one_writes(tmp_path: Path) -> None:
    """Each of the others is told so, or comes when the one before it has ended."""
    url = f"memory://{tmp_path.name}"
    inside, most, ends = 0, 0, []
    guard, start = threading.Lock(), threading.Barrier(6)

    def write(number: int) -> None:
        nonlocal inside, most
        start.wait()
        try:
            with lease(AtomicObjects(url), url, f"writer {number}", f"copy {number}"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.2)
                with guard:
                    inside -= 1
                ends.append("wrote")
        except WriterBusy:
            ends.append("busy")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(ends) == 6
    assert "wrote" in ends


def test_a_lease_that_is_none_is_named(store_url: str) -> None:
    objects = FsspecObjects(store_url)
    objects.write(object_of(FOLDER, 3), b"{}")
    with pytest.raises(CorruptWarehouse, match=r"lease/00000003.json is no lease"), lease(objects, store_url, "a", "b"):
        pytest.fail("a lease was taken over that nobody could read")


def test_a_number_that_is_taken_or_was_long_ago_cannot_be_claimed(store_url: str) -> None:
    objects = FsspecObjects(store_url)
    for number in (1, 2, 3):
        claim(objects, "index", number, b"mine %d" % number)
    with pytest.raises(FileExistsError):
        claim(objects, "index", 3, b"another's")
    remove_before(objects, "index", 3)
    with pytest.raises(FileExistsError):
        claim(objects, "index", 2, b"a sleeper's")
    assert list(objects.sizes("index")) == [object_of("index", 3)]
    assert objects.read(object_of("index", 3)) == b"mine 3"


class LosingAnswers(FsspecObjects):
    """A filesystem whose answers to `create` get lost, and which asks again if told to, as S3's library does."""

    asks_again = True
    comes_through = True

    def create(self, name: str, content: bytes) -> None:
        if self.comes_through:
            super().create(name, content)
        if self.asks_again:
            super().create(name, content)
        raise StoreUnavailable("memory://x", "the answer was lost")


@pytest.mark.parametrize("asks_again", [True, False])
def test_a_claim_whose_answer_was_lost_holds(asks_again: bool, tmp_path: Path) -> None:
    objects = LosingAnswers(f"memory://{tmp_path.name}-{asks_again}")
    objects.asks_again = asks_again
    claim(objects, "index", 1, b"mine")
    with pytest.raises(FileExistsError):
        claim(objects, "index", 1, b"another's")
    objects.comes_through = objects.asks_again = False
    with pytest.raises(StoreUnavailable):
        claim(objects, "index", 2, b"never came")


class PassingOver(FsspecObjects):
    """A server that takes no notice of conditions."""

    def create(self, name: str, content: bytes) -> None:
        self.write(name, content)


def test_a_store_that_passes_over_conditions_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects = PassingOver(f"memory://{tmp_path.name}")
    with lease(objects, "memory://x", "me", "here"):
        assert not objects.exclusive
        assert holding(objects)["owner"] == "me"
    assert "memory://x has no conditional writes" in caplog.text


class LookingFirst(FsspecObjects):
    """A filesystem that looks whether there is an object and writes then; another writer comes in between."""

    def create(self, name: str, content: bytes) -> None:
        super().create(name, content)
        self.write(name, b"another's")


def test_without_conditional_writes_a_claim_that_was_written_over_is_noticed(tmp_path: Path) -> None:
    objects = LookingFirst(f"memory://{tmp_path.name}")
    objects.exclusive = False
    with pytest.raises(FileExistsError):
        claim(objects, "index", 1, b"mine")


def test_a_holder_is_over_when_released_or_late(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    one = Holder("o", "h", 1, "c", "t", now, now + LEASE)
    assert not one.is_over(now + LEASE + CLOCKS_AGREE)
    assert one.is_over(now + LEASE + CLOCKS_AGREE + timedelta(seconds=1))
    assert replace(one, released=True).is_over(now)
