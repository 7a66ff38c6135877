"""Partitioning: the Apache Beam pipeline that brings a run's events to their users' buckets and seals what is full.

Its elements are Arrow batches, not rows: a reader cuts a batch of events into one per bucket and writes them to a file,
the shuffle carries their places in it, and `augment.sealing` seals a bucket as a whole. Hence memory does not grow with
the events. Workers share nothing but the folders that hold the files, so the pipeline runs wherever those can be seen:
in this process, in several, on Flink, Spark or Dataflow.
"""

import errno
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from augment.beam import GlobalWindow, WindowedValue, beam
from augment.buckets import Piece, joined, split
from augment.runners import pipeline_options, runner_named
from augment.sealing import PartitionConfig, seal_bucket
from warehouse.errors import ConfigError, CorruptWarehouse, InputError, MissingColumn, WrongType
from warehouse.schemas import BEHAVIOURS, OPEN_PARTITIONS
from warehouse.store import read_table, write_json, write_table

__all__ = ["PartitionConfig", "PartitionReport", "partition_events"]

# Rows read and split at once. More cost memory, fewer make more and smaller pieces.
BATCH_ROWS = 1 << 20

# In the files of open partitions: the number of buckets they were hashed into.
BUCKETS_KEY = b"lorestream.buckets"

OPEN_NAME = re.compile(r"-b(\d+)\.parquet$")


@dataclass(frozen=True)
class PartitionReport:
    """What a run did. `superseded_files` are the open partitions that `open_files` replace, bucket by bucket."""

    events: int
    users: int
    sealed: int
    partition_files: tuple[Path, ...]
    open_files: tuple[Path, ...]
    superseded_files: tuple[Path, ...]
    seconds: float


@dataclass(frozen=True)
class ReadTask:
    """Row groups of one file that are read and split together."""

    path: str
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class SealTask:
    """What a worker needs to seal any bucket: pickled, so that it may sit anywhere."""

    open_files: dict[int, str]
    out: str
    run: str
    config: PartitionConfig


@dataclass(frozen=True)
class SealedBucket:
    """A bucket's share of the report; the file of partitions is None where nothing was sealed."""

    events: int
    users: int
    sealed: int
    partition_file: str | None
    open_file: str
    superseded_file: str | None


def partition_events(
    new_events: Sequence[Path], open_partitions: Sequence[Path], out: Path, run: str, config: PartitionConfig
) -> PartitionReport:
    """A report of the files written to `out`/partitions and `out`/open, named `<run>-bNN.parquet` by bucket.

    `new_events` are Parquet files of BEHAVIOURS in any order; `open_partitions` those that earlier runs wrote to
    `open`, at most one per bucket. Only buckets with a new event are read and written. Nothing is committed here.

    Raises ConfigError for a runner, an option or a number of buckets that cannot be, InputError for events that cannot
    be read or lack a column, CorruptWarehouse for open partitions that cannot be read, OSError when the disk is full.
    """
    began = time.monotonic()
    runner = runner_named(config.runner)
    options = pipeline_options(config.runner_options, runner)
    reads = [task for path in new_events for task in _read_tasks(path)]
    task = SealTask(_open_files(open_partitions, config.buckets), str(out), run, config)
    done: list[SealedBucket] = []
    if reads:
        # Runners have no return value in common; what they do have is the folder that the tables go to.
        scratch = out / f".tmp-{run}-{token_hex(4)}"
        scratch.mkdir(parents=True)
        try:
            report = scratch / "report.json"
            _run_on_disk(beam.Pipeline(runner=runner, options=options), reads, task, scratch, report)
            done = [SealedBucket(**bucket) for bucket in orjson.loads(report.read_bytes())]
        finally:
            shutil.rmtree(scratch)
    return PartitionReport(
        events=sum(bucket.events for bucket in done),
        users=sum(bucket.users for bucket in done),
        sealed=sum(bucket.sealed for bucket in done),
        partition_files=_paths(bucket.partition_file for bucket in done),
        open_files=_paths(bucket.open_file for bucket in done),
        superseded_files=_paths(bucket.superseded_file for bucket in done),
        seconds=time.monotonic() - began,
    )


def _run_on_disk(pipeline: beam.Pipeline, reads: list[ReadTask], task: SealTask, scratch: Path, report: Path) -> None:
    """`_run`, a full disk being said as such: Beam makes its error one of its own, with the words in it."""
    try:
        _run(pipeline, reads, task, scratch, report)
    except RuntimeError as error:
        if f"[Errno {errno.ENOSPC}]" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch.parent)) from error


def _run(pipeline: beam.Pipeline, reads: list[ReadTask], task: SealTask, scratch: Path, report: Path) -> None:
    threads = task.config.threads
    with pipeline:
        (
            pipeline
            | "row groups" >> beam.Create(reads)
            | "to all workers" >> beam.Reshuffle()
            | "read and split" >> beam.ParDo(InThreads(_split, task.config.buckets, str(scratch), threads=threads))
            | "by bucket" >> beam.GroupByKey()
            | "gather" >> beam.MapTuple(lambda bucket, pieces: (bucket, list(pieces)))
            | "seal" >> beam.ParDo(InThreads(_seal, task, threads=threads))
            | "all buckets" >> beam.combiners.ToList()
            | "report" >> beam.Map(_write_report, str(report))
        )


class InThreads(beam.DoFn):  # type: ignore[misc]
    """Applies `work(element, *given)` to a few elements at a time: Arrow and numpy leave the interpreter to others."""

    def __init__(self, work: Callable[..., Iterable[Any]], *given: object, threads: int) -> None:
        self.work, self.given, self.threads = work, given, threads

    def setup(self) -> None:
        self.pool = ThreadPoolExecutor(self.threads)

    def start_bundle(self) -> None:
        self.pending: deque[Future[list[Any]]] = deque()

    def process(self, element: Any) -> Iterator[Any]:
        self.pending.append(self.pool.submit(lambda: list(self.work(element, *self.given))))
        while len(self.pending) > self.threads:
            yield from self.pending.popleft().result()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        window = GlobalWindow()
        while self.pending:
            for result in self.pending.popleft().result():
                yield WindowedValue(result, window.max_timestamp(), [window])

    def teardown(self) -> None:
        self.pool.shutdown()


def _split(task: ReadTask, buckets: int, scratch: str) -> Iterator[tuple[int, Piece]]:
    """The events of a few row groups, by bucket; a second attempt at it writes files of its own."""
    try:
        with pq.ParquetFile(task.path, read_dictionary=["action"]) as file:
            # One thread: other batches are read at the same time.
            events = file.read_row_groups(list(task.row_groups), columns=BEHAVIOURS.names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(task.path, error) from error
    for start in range(0, len(events), BATCH_ROWS):
        yield from split(events.slice(start, BATCH_ROWS), buckets, Path(scratch, f"{token_hex(8)}.arrow"))


def _seal(bucket_pieces: tuple[int, list[Piece]], task: SealTask) -> Iterator[SealedBucket]:
    """Write a bucket's partitions and open partitions."""
    bucket, pieces = bucket_pieces
    open_file = task.open_files.get(bucket)
    known = read_table([Path(open_file)] if open_file else [], OPEN_PARTITIONS)
    sealed = seal_bucket(joined(pieces), known, task.config)
    name = f"{task.run}-b{bucket:02d}.parquet"
    partitions, still_open = Path(task.out, "partitions", name), Path(task.out, "open", name)
    if len(sealed.partitions):
        write_table(partitions, sealed.partitions)
    write_table(
        still_open, sealed.open_partitions.replace_schema_metadata({BUCKETS_KEY: str(task.config.buckets).encode()})
    )
    yield SealedBucket(
        sealed.events,
        sealed.users,
        len(sealed.partitions),
        str(partitions) if len(sealed.partitions) else None,
        str(still_open),
        open_file,
    )


def _write_report(buckets: list[SealedBucket], path: str) -> None:
    write_json(Path(path), [asdict(bucket) for bucket in buckets])


def _paths(names: Iterable[str | None]) -> tuple[Path, ...]:
    return tuple(sorted(Path(name) for name in names if name is not None))


def _read_tasks(path: Path) -> Iterator[ReadTask]:
    """What to read of a file of events, in pieces of about BATCH_ROWS rows; its columns are checked first."""
    try:
        with pq.ParquetFile(path) as file:
            found, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(path), error) from error
    for field in BEHAVIOURS:
        index = found.get_field_index(field.name)
        if index < 0:
            raise MissingColumn("behaviours", field.name, found.names, str(path))
        if not found.field(index).type.equals(field.type):
            raise WrongType("behaviours", field.name, str(field.type), str(found.field(index).type), str(path))
    groups: list[int] = []
    rows = 0
    for number in range(metadata.num_row_groups):
        added = metadata.row_group(number).num_rows
        if groups and rows + added > BATCH_ROWS:
            yield ReadTask(str(path), tuple(groups))
            groups, rows = [], 0
        groups.append(number)
        rows += added
    if rows:
        yield ReadTask(str(path), tuple(groups))


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(f"The events in {path} cannot be read as Parquet ({error}). Ingest them again.")


def _open_files(paths: Sequence[Path], buckets: int) -> dict[int, str]:
    """The file of open partitions of each bucket that has one."""
    files: dict[int, str] = {}
    for path in paths:
        named = OPEN_NAME.search(path.name)
        if named is None:
            raise CorruptWarehouse(f"{path} is not named <run>-bNN.parquet, as files of open partitions are.")
        bucket = int(named[1])
        if bucket in files:
            raise CorruptWarehouse(
                f"Bucket {bucket} has two files of open partitions, {files[bucket]} and {path}. "
                "The ledger should name only the newer one: restore it from a backup."
            )
        files[bucket] = str(path)
        try:
            hashed_into = int((pq.read_schema(path).metadata or {})[BUCKETS_KEY])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise CorruptWarehouse(
                f"{path} cannot be read as open partitions ({error!r}). Restore it from a backup."
            ) from error
        if hashed_into != buckets:
            raise ConfigError(
                f"`buckets` is {buckets}, but this warehouse's users were hashed into {hashed_into} ({path}). "
                f"Set it to {hashed_into}: it is fixed by a warehouse's first run."
            )
    return files
