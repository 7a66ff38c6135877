"""Seeded schedules of faults over two nights of a tiny shop, each run to its end and compared with undisturbed nights.

    python schedules.py FOLDER FIRST LAST EVERY    # prints, as JSON, what was injected and what differed

Seeds are FIRST, ..., LAST - 1; those that EVERY divides go through both nights, the others through the first. Nights of
even seeds end with a compaction of all tables.

Every attempt at a night is a child process, forked before DuckDB or Arrow has started a thread. In it a fault waits at
one change of the file system or one answer of the engine: the process is killed just before or just after, or the disk
is full from there on. Between attempts a file that the warehouse counts on is cut short or taken away, and given back
once the run has said so; the clock is set back by a day; a second writer tries the door.
"""

import errno
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from augment.engine.base import Completion, Request
from augment.engine.scripted import ScriptedEngine
from augment.generate import SegmentConfig
from flows.config import load_config
from flows.run import Run, utc_now
from flows.setup import prepare_warehouse
from tests.flows.shop import QuickEncoder, event, open_shop, run_stages, scripted_engine, write_events
from warehouse.compaction import compact
from warehouse.errors import LorestreamError, WriterBusy
from warehouse.garbage import collect_garbage
from warehouse.ledger import Ledger
from warehouse.lock import writer_lock
from warehouse.merging import merge_internal
from warehouse.schemas import SEGMENTED
from warehouse.segments import segments
from warehouse.snapshot import read_manifest
from warehouse.store import read_table

CHANGES = ("replace", "link", "unlink", "rename", "fsync")
NIGHTS = 2
SEGMENT = 3
# When something was made, by which run and in which file: what may differ between two ways to the same tables.
PROVENANCE = {"created_at", "snapshot_id", "source"}
FAULTS = ("kill before", "kill after", "full disk", "truncated", "vanished", "clock back", "two writers")


class PaidEngine(ScriptedEngine):
    """Notes every answer it gives, as a provider's bill would; a fault may wait at each of them."""

    def __init__(self, bill: Path, at_change: Callable[[], None]) -> None:
        super().__init__(scripted_engine()._answer, max_concurrent=2)
        self._bill, self._at_change = bill, at_change

    def _complete(self, request: Request) -> Completion:
        self._at_change()
        with self._bill.open("a") as bill:
            bill.write(request.request_key + "\n")
        return super()._complete(request)


class Shop:
    """A shop whose nights are run in children, and what they left behind."""

    def __init__(self, folder: Path, compacts: bool) -> None:
        self.folder, self.config, self.compacts = folder, open_shop(folder, users=3, events_each=5), compacts
        self.bill = folder / "bill.txt"
        self.bill.touch()
        self.root = load_config(self.config).root
        _in_child(lambda: prepare_warehouse(self.root))

    def begin_night(self, night: int) -> None:
        """What comes in before the run of this night."""
        if night:
            write_events(
                self.folder, f"-{night}", [event(u, u + 2, 100 * night + h) for u in range(3) for h in range(3)]
            )

    def attempt(self, fault: str = "", at: int = -1) -> tuple[int, int]:
        """How a run ended that meets `fault` at its `at`-th change, and how many changes it had come to."""
        counter = self.folder / "changes"
        counter.write_bytes(bytes(8))
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _night(self, fault, at, counter)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return ended, int.from_bytes(counter.read_bytes(), "big")

    def billed(self) -> list[str]:
        return self.bill.read_text().split()


def _night(shop: Shop, fault: str, at: int, counter: Path) -> int:
    """0 after a whole run, 3 where something was said to be wrong."""
    made = 0
    count = os.open(counter, os.O_WRONLY)

    def at_change() -> bool:
        """Count a change; whether the fault strikes here."""
        nonlocal made
        made += 1
        os.pwrite(count, made.to_bytes(8, "big"), 0)
        return made > at if fault == "full disk" else made == at + 1

    def strike() -> None:
        if at_change():
            if fault == "full disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            if fault.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "two writers":
                _try_the_door(shop.root)

    def striking(change: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(change)
        def changed(*arguments: Any, **named: Any) -> Any:
            if fault == "kill after":
                result = change(*arguments, **named)
                strike()
                return result
            # A full disk lets files go.
            if not (fault == "full disk" and name in ("unlink", "fsync")):
                strike()
            return change(*arguments, **named)

        return changed

    for name in CHANGES:
        setattr(os, name, striking(getattr(os, name), name))
    pq.ParquetWriter.write_table = striking(pq.ParquetWriter.write_table, "write_table")  # type: ignore[method-assign]
    config = load_config(shop.config).model_copy(update={"segments": SegmentConfig(rows=SEGMENT)})
    back = timedelta(days=1 if fault == "clock back" else 0)
    try:
        with writer_lock(shop.root, "faults"):
            run = Run(config, shop.root, engine=PaidEngine(shop.bill, strike), clock=lambda: utc_now() - back)
            run.encoder = QuickEncoder(config.encoder)  # type: ignore[assignment]
            run_stages(run)
            if shop.compacts:
                compact(shop.root, target_mb=1, now=run.clock())
                merge_internal(shop.root, target_mb=1, now=run.clock())
    except (LorestreamError, OSError) as error:
        if not fault:
            sys.stderr.write(f"{error}\n")
        return 3
    return 0


def _try_the_door(root: Path) -> None:
    """Raises AssertionError unless a second writer is turned away."""
    try:
        with writer_lock(root, "a second writer"):
            pass
    except WriterBusy:
        return
    raise AssertionError("a second writer was let in")


def counted_on(root: Path) -> list[Path]:
    """Every file that the ledger or the manifest names."""
    ledger = Ledger(root)
    named = {path for table in _tables(ledger) for path in ledger.files(table)}
    named |= {root / ref.path for s in read_manifest(root).snapshots for refs in s.tables.values() for ref in refs}
    return sorted(named)


def _tables(ledger: Ledger) -> set[str]:
    return {table for commit in ledger.commits() for table in commit.add}


def content(root: Path) -> dict[str, list[str]]:
    """The rows of every table without their provenance, sorted; those of the current snapshot for public tables."""
    ledger = Ledger(root)
    files = {table: ledger.files(table) for table in _tables(ledger)}
    files |= {table: segments(ledger, table) for table in SEGMENTED}
    snapshot = read_manifest(root).current_snapshot()
    assert snapshot is not None
    files |= {table: snapshot.files(root, table) for table in snapshot.tables}
    return {table: sorted(_rows(paths)) for table, paths in files.items() if table != "pools"}


def _rows(paths: list[Path]) -> Iterator[str]:
    table = read_table(paths, None) if paths else pa.table({})
    kept = [name for name in table.column_names if name not in PROVENANCE]
    for row in table.select(kept).to_pylist():
        yield json.dumps(row, default=str, sort_keys=True)


def run_schedule(
    folder: Path, seed: int, nights: int, changes: list[int], expected: dict[str, list[str]]
) -> dict[str, Any]:
    """One schedule: what was injected, what was paid twice although it was stored, and the tables that differ."""
    rng = random.Random(seed)
    shop = Shop(folder, compacts=seed % 2 == 0)
    injected: Counter[str] = Counter()
    repeated = 0
    for night in range(nights):
        shop.begin_night(night)
        for _ in range(rng.randint(1, 2)):
            fault = rng.choice(FAULTS)
            stored, before = set(_in_child(lambda: _stored(shop.root))), len(shop.billed())
            if fault in ("truncated", "vanished"):
                injected[fault] += _damaged(shop, fault, rng)
            else:
                ended, came_to = shop.attempt(fault, at := rng.randrange(changes[night]))
                # What the run needed less of than an undisturbed one, it was not struck at.
                injected[fault] += fault == "clock back" or came_to > at
                assert ended in (0, 3, -signal.SIGKILL), f"seed {seed}: a run with {fault} at {at} ended with {ended}"
            repeated += len(stored & set(shop.billed()[before:]))
        stored, before = set(_in_child(lambda: _stored(shop.root))), len(shop.billed())
        ended, _ = shop.attempt()
        assert ended == 0, f"seed {seed}: night {night} does not end well after {dict(injected)}"
        repeated += len(stored & set(shop.billed()[before:]))
    found = content(shop.root)
    collect_garbage(shop.root, keep=100, grace=timedelta(0), now=utc_now() + timedelta(days=2))
    files = {path for path in shop.root.rglob("*") if path.suffix in (".parquet", ".pool") or ".tmp-" in path.name}
    adapters = set(shop.root.glob("adapters/*/*"))
    return {
        "seed": seed,
        "injected": dict(injected),
        "repeated": repeated,
        # Of an attempt that was cut off, what was answered and not yet in a segment.
        "asked_again": sum(times - 1 for times in Counter(shop.billed()).values()),
        "allowed": (SEGMENT + 1) * sum(injected[fault] for fault in ("kill before", "kill after", "full disk")),
        "differences": [table for table in expected.keys() | found.keys() if expected.get(table) != found.get(table)],
        "orphans": sorted(str(path.relative_to(shop.root)) for path in files - set(counted_on(shop.root)) - adapters),
    }


def _stored(root: Path) -> list[str]:
    """The calls that were finished."""
    files = segments(Ledger(root), "knowledge")
    return list(read_table(files, None, ["request_key"])["request_key"].to_pylist()) if files else []


def _damaged(shop: Shop, fault: str, rng: random.Random) -> int:
    """Cut short or take away a file that counts, run, and give it back; 1 where there was one."""
    files = counted_on(shop.root) if shop.root.exists() else []
    if not files:
        return 0
    victim = rng.choice(files)
    kept = victim.read_bytes()
    if fault == "truncated":
        victim.write_bytes(kept[: rng.randrange(len(kept))])
    else:
        victim.unlink()
    shop.attempt()
    victim.write_bytes(kept)
    return 1


def main(folder: str, first: str, last: str, every: str) -> None:
    quiet = Shop(Path(folder, "quiet"), compacts=True)
    changes, expected = [], []
    for night in range(NIGHTS):
        quiet.begin_night(night)
        ended, came_to = quiet.attempt()
        assert ended == 0, "an undisturbed night failed"
        changes.append(came_to)
        expected.append(_in_child(lambda: content(quiet.root)))
    for seed in range(int(first), int(last)):
        home, nights = Path(folder, str(seed)), 1 if seed % int(every) else NIGHTS
        run = partial(run_schedule, home, seed, nights, changes, expected[nights - 1])
        sys.stdout.write(json.dumps(_in_child(run)) + "\n")
        sys.stdout.flush()
        shutil.rmtree(home)


def _in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a copy of this process, so that this one never starts a thread."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(work()))
            out.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as sent:
        answer = sent.read()
    os.waitpid(child, 0)
    return json.loads(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
