"""Sealing: a bucket's events cut, user by user and in order, into partitions that never change (LIBER's UBSP).

Pure functions over Arrow tables: no files, no clock, no Beam. A user's pending events are those of the open partition
and the new ones, in the order of (ts, item_id, arrival); the open partition's arrived before any new one, and new ones
that agree in both stand by (action, value), so the order in which a run's events come in changes nothing. They are
folded greedily, and only an event ever seals: cutting a stream in that order into runs changes nothing either.
"""

from dataclasses import dataclass
from hashlib import blake2b
from struct import pack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from warehouse.keys import DIGEST_BYTES
from warehouse.schemas import BEHAVIOURS, OPEN_PARTITIONS, PARTITIONS, TIMESTAMP

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

DAY_US = 86_400_000_000
BEFORE_ALL = int(np.iinfo(np.int64).min)


class PartitionConfig(BaseModel, frozen=True, extra="forbid"):
    """When a partition is sealed, and where its pipeline runs. A size of 10 seals with the tenth event."""

    # Growing, so that a young user gets knowledge early and a lifelong one pays a call per 50 events; the last repeats.
    sizes: tuple[int, ...] = (10, 20, 50)
    # Sealed before an event that is further than this from the partition's first event, or from its last.
    max_age_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    gap_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    # Users are hashed into so many files per run. Fixed for the life of a warehouse.
    buckets: int = Field(64, ge=1, le=65_536)
    # Batches split, or buckets sealed, at the same time in one worker process. Memory grows with it.
    threads: int = Field(2, ge=1)
    # By name. Not `DirectRunner`: it first tries to download a binary.
    runner: str = "FnApiRunner"
    # Flags for Beam's PipelineOptions, as they stand: ("--direct_running_mode=multi_processing", ...).
    runner_options: tuple[str, ...] = ()

    @field_validator("sizes")
    @classmethod
    def _sizes_hold_events(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sizes = {list(sizes)}: give at least one size, each 1 or more, like [10, 20, 50]")
        return sizes


@dataclass(frozen=True)
class Sealed:
    """A bucket after a run: what was sealed in it, by (user_id, partition_no), and all its open rows, by user_id."""

    partitions: pa.Table
    open_partitions: pa.Table
    events: int
    users: int


@dataclass(frozen=True)
class Pending:
    """Events to fold, in order of (user, ts, item_id, arrival); `user` numbers `names`, which are in order, too."""

    names: pa.StringArray
    user: Ints
    ts: Ints
    items: pa.StringArray
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Cuts:
    """Ranges [start, stop) of pending events to seal, in their order; per user, where the open rest begins."""

    user: Ints
    number: Ints
    start: Ints
    stop: Ints
    rest: Ints
    rest_number: Ints


def seal_bucket(new: pa.Table, open_partitions: pa.Table, config: PartitionConfig) -> Sealed:
    """What `new` events (BEHAVIOURS) make of a bucket that holds `open_partitions` (OPEN_PARTITIONS).

    Users without a new event keep their row as it is.
    """
    touched = pc.is_in(open_partitions["user_id"], value_set=pc.unique(new["user_id"]))
    resting, growing = open_partitions.filter(pc.invert(touched)), open_partitions.filter(touched)
    pending = _pending(growing, new)

    # By user: the number of the open partition, and the latest `sealed_at`, below which no later one may fall.
    number, floor = np.zeros(len(pending.names), np.int64), np.full(len(pending.names), BEFORE_ALL)
    known = pc.index_in(growing["user_id"], value_set=pending.names).to_numpy()
    number[known] = growing["partition_no"].to_numpy()
    floor[known] = _micros(growing["sealed_floor"].fill_null(pa.scalar(BEFORE_ALL, TIMESTAMP)))

    cuts = _cut(pending, number, config)
    sealed_at = np.maximum(floor[cuts.user], pending.ts[cuts.stop - 1])
    np.maximum.at(floor, cuts.user, sealed_at)
    is_sealed = np.arange(len(pending.ts)) < cuts.rest[pending.user]
    still_open = _still_open(pending, ~is_sealed, cuts.rest_number, floor)
    if len(resting):
        still_open = pa.concat_tables([resting.cast(OPEN_PARTITIONS), still_open]).sort_by("user_id")
    return Sealed(_partitions(pending, is_sealed, cuts, sealed_at), still_open, len(new), len(pending.names))


def partition_digests(
    users: pa.StringArray, numbers: Ints, lengths: Ints, items: pa.StringArray, ts: Ints, values: NDArray[np.float32]
) -> pa.StringArray:
    """32 hex digits naming each partition by its canonical bytes; its events are the next `lengths` of the columns.

    The bytes, all little-endian: u32 length of user_id; user_id in UTF-8; u32 partition_no; u32 number of events; for
    each event i64 ts in microseconds, f32 value, u32 length of item_id; all item_ids in UTF-8, back to back.
    """
    offset = np.frombuffer(items.buffers()[1], np.int32)[items.offset :][: len(items) + 1]
    text = memoryview(items.buffers()[2] or b"")
    events = np.empty(len(ts), np.dtype([("ts", "<i8"), ("value", "<f4"), ("length", "<u4")]))
    events["ts"], events["value"], events["length"] = ts, values, np.diff(offset)
    rows, size = memoryview(events.view(np.uint8).data), events.itemsize
    stop = np.cumsum(lengths)
    start = stop - lengths
    ranges = (start, stop, offset[start], offset[stop])
    digests = []
    # The one loop of a run over Python objects: once per sealed partition.
    for name, number, first, last, from_, to in zip(
        users.to_pylist(), numbers.tolist(), *(ends.tolist() for ends in ranges), strict=True
    ):
        user = name.encode()
        head = pack(f"<I{len(user)}sII", len(user), user, number, last - first)
        body = b"".join((head, rows[size * first : size * last], text[from_:to]))
        digests.append(blake2b(body, digest_size=DIGEST_BYTES).hexdigest())
    return pa.array(digests, pa.string())


def _partitions(pending: Pending, is_sealed: Mask, cuts: Cuts, sealed_at: Ints) -> pa.Table:
    users, length = pending.names.take(pa.array(cuts.user)), cuts.stop - cuts.start
    items, ts, values = _where(is_sealed, pending.items), pending.ts[is_sealed], pending.values[is_sealed]
    columns = [
        users,
        pa.array(cuts.number, pa.int32()),
        _timestamps(pending.ts[cuts.start]),
        _timestamps(sealed_at),
        _lists(length, items),
        _lists(length, pa.array(values)),
        partition_digests(users, cuts.number, length, items, ts, values),
    ]
    return pa.table(columns, schema=PARTITIONS)


def _still_open(pending: Pending, is_open: Mask, number: Ints, floor: Ints) -> pa.Table:
    length = np.bincount(pending.user[is_open], minlength=len(pending.names))
    columns = [
        pending.names,
        pa.array(number, pa.int32()),
        _timestamps(floor, missing=floor == BEFORE_ALL),
        _lists(length, _where(is_open, pending.items)),
        _lists(length, _timestamps(pending.ts[is_open])),
        _lists(length, pa.array(pending.values[is_open])),
    ]
    return pa.table(columns, schema=OPEN_PARTITIONS)


def _cut(pending: Pending, number: Ints, config: PartitionConfig) -> Cuts:
    """Greedy cuts: a round seals at most one partition of each user, and all users' at once."""
    user, ts = pending.user, pending.ts
    sizes = np.array(config.sizes)
    count = np.bincount(user, minlength=len(number))
    stop = np.cumsum(count)
    at, number = stop - count, number.copy()
    gap = np.inf if config.gap_days is None else _days(config.gap_days)
    gaps = np.append(np.flatnonzero(np.diff(ts) > gap) + 1, len(ts))
    rounds = [(np.empty(0, np.int64),) * 4]
    live = np.arange(len(number))
    while len(live):
        start, end = at[live], stop[live]
        full = start + sizes[np.minimum(number[live], len(sizes) - 1)]
        cut = np.minimum(full, end)
        if config.gap_days is not None:
            cut = np.minimum(cut, gaps[np.searchsorted(gaps, start, side="right")])
        if config.max_age_days is not None:
            cut = _first_after(ts, start, cut, ts[start] + _days(config.max_age_days))
        # Short of the user's end, an event follows that does not fit; at the end only a full partition is sealed.
        is_sealed = (cut < end) | (cut == full)
        live, start, cut = live[is_sealed], start[is_sealed], cut[is_sealed]
        rounds.append((live, number[live], start, cut))
        at[live], number[live] = cut, number[live] + 1
        live = live[cut < stop[live]]
    found = [np.concatenate(column) for column in zip(*rounds, strict=True)]
    by_start = np.argsort(found[2], kind="stable")
    user, number_of, start, stop = (column[by_start] for column in found)
    return Cuts(user, number_of, start, stop, rest=at, rest_number=number)


def _first_after(ts: Ints, start: Ints, stop: Ints, limit: Ints) -> Ints:
    """Per range [start, stop) of ascending `ts`, the first index with ts > limit, else `stop`: by bisection."""
    low, high = start.copy(), stop.copy()
    while (unsettled := low < high).any():
        middle = (low + high) // 2
        beyond = ts[np.minimum(middle, len(ts) - 1)] > limit
        low = np.where(unsettled & ~beyond, middle + 1, low)
        high = np.where(unsettled & beyond, middle, high)
    return low


def _pending(open_rows: pa.Table, new: pa.Table) -> Pending:
    """The events of `open_rows` and the `new` ones in the order of DESIGN section 3.

    Every sort is stable. Logs come more or less in order of time, and a stable sort is fast on such numbers.
    """
    tail = _events_of(open_rows)
    events = pa.concat_tables([tail, new.select(tail.column_names)])
    names, user = _ranked(events["user_id"].combine_chunks())
    items, ts, values = events["item_id"].combine_chunks(), _micros(events["ts"]), events["value"].to_numpy()
    order = np.argsort(ts, kind="stable")
    # At most 16 bits, and numpy sorts by radix.
    order = order[np.argsort(user[order].astype(np.min_scalar_type(len(names))), kind="stable")]
    same = (np.diff(user[order]) == 0) & (np.diff(ts[order]) == 0)
    if same.any():
        tied, run = _runs(same)
        rows = order[tied]
        _, item = _ranked(items.take(pa.array(rows)))
        by_item = np.lexsort((item, run))
        order[tied] = rows[by_item]
        same[same] = (np.diff(item[by_item]) == 0)[np.diff(run) == 0]
    if same.any():
        tied, run = _runs(same)
        rows = order[tied]
        # What was in the open partition comes first and keeps its order; its actions are gone.
        is_new = rows >= len(tail)
        action, value = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        _, action[is_new] = _ranked(new["action"].take(pa.array(rows[is_new] - len(tail))).combine_chunks())
        value[is_new] = _float_rank(values[rows[is_new]])
        order[tied] = rows[np.lexsort((value, action, is_new, run))]
    return Pending(names, user[order], ts[order], items.take(pa.array(order)), values[order])


def _runs(same: Mask) -> tuple[Ints, Ints]:
    """Positions of neighbours that are the `same`, and for each the number of the run it is in."""
    after, before = np.append(False, same), np.append(same, False)
    tied = np.flatnonzero(after | before)
    return tied, np.cumsum(~after)[tied]


def _float_rank(values: NDArray[np.float32]) -> Ints:
    """Numbers that sort as `values` do, in a total order: -0.0 before 0.0, so that no two bit patterns are equal."""
    bits = values.view(np.uint32).astype(np.int64)
    ranks: Ints = np.where(bits >> 31, ~bits, bits)
    return ranks


def _ranked(texts: pa.Array) -> tuple[pa.StringArray, Ints]:
    """The distinct `texts` in order of their bytes in UTF-8, and each row's place among them."""
    coded = texts.dictionary_encode()
    order = pc.sort_indices(coded.dictionary).to_numpy()
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return coded.dictionary.take(pa.array(order)), places[coded.indices.to_numpy()]


def _events_of(rows: pa.Table) -> pa.Table:
    """The events of open partitions, one row each, in order; there is no action any more."""
    owner = np.repeat(np.arange(len(rows)), pc.list_value_length(rows["items"]).to_numpy())
    return pa.table(
        {
            "user_id": rows["user_id"].take(pa.array(owner)),
            "item_id": pc.list_flatten(rows["items"]),
            "ts": pc.list_flatten(rows["ts"]),
            "value": pc.list_flatten(rows["values"]),
        },
        schema=pa.schema([field for field in BEHAVIOURS if field.name != "action"]),
    )


def _where(mask: Mask, texts: pa.StringArray) -> pa.StringArray:
    return texts.take(pa.array(np.flatnonzero(mask)))


def _lists(length: Ints, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(length)), pa.int32()), values)


def _micros(column: pa.ChunkedArray) -> Ints:
    micros: Ints = column.cast(pa.int64()).to_numpy()
    return micros


def _timestamps(micros: Ints, missing: Mask | None = None) -> pa.TimestampArray:
    return pa.array(micros, pa.int64(), mask=missing).cast(TIMESTAMP)


def _days(days: float) -> int:
    """Whole microseconds, at most 2**62: no clock goes that far, and sums with one stay in 64 bits."""
    return min(round(days * DAY_US), 1 << 62)
