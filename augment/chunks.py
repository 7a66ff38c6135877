"""An interval of event time cut into chunks, each with so many days or so many calls: what a backfill does one by one.

A user's partitions are sealed in order of their numbers, so chunks in order of time meet every user's partitions as an
uncut interval does, and prompts that show earlier answers are the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import duckdb
import numpy as np
from numpy.typing import NDArray

from augment.repertoire import KnowledgeConfig
from augment.scope import EngineIdentity, Scope, Sources, register
from prompts.render import Kind
from warehouse.sql import connect

Ints = NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Chunk:
    """Partitions sealed in [start, end) and the items in them: how many calls are missing there, groups aside."""

    start: datetime
    end: datetime
    calls: int


@dataclass(frozen=True)
class ChunkPlan:
    """The part [start, end) of an interval in which anything was sealed, and its chunks with a missing call, in order.

    Both bounds are None where nothing was. `first` and `last` are the first and last times at which any partition of
    the warehouse was sealed. Of all `calls` of the part, `answered` need not be made.
    """

    start: datetime | None
    end: datetime | None
    first: datetime | None
    last: datetime | None
    partitions: int
    calls: int
    answered: int
    chunks: tuple[Chunk, ...]


def cut_interval(
    sources: Sources,
    engine: EngineIdentity,
    versions: Mapping[str, str],
    knowledge: KnowledgeConfig,
    scope: Scope,
    *,
    chunk_days: float | None,
    chunk_calls: int,
) -> ChunkPlan:
    """The chunks of `scope`, an interval of time: of `chunk_days` from its start on, or else of at most `chunk_calls`.

    More only where partitions that were sealed at one instant have more: an instant is never cut. What was asked and
    answered is told as by a plan: by the engine, the prompts' `versions` and the kinds of `knowledge`.
    """
    assert scope.start is not None
    assert scope.end is not None
    with connect() as con:
        register(con, sources, engine.engine_id, versions, scope)
        found = con.sql(_EXTENT).to_arrow_table().to_pylist()[0]
        times, missing, answered = _calls_by_time(con, knowledge)
    if found["first"] is None or not found["partitions"]:
        return ChunkPlan(None, None, found["all_first"], found["all_last"], 0, 0, 0, ())
    start, end = found["first"], found["last"] + _MICROSECOND
    if chunk_days is None:
        bounds = _by_calls(times, missing, chunk_calls, _micros(start), _micros(end))
    else:
        bounds = _by_days(_micros(scope.start), chunk_days, _micros(start), _micros(end))
    chunks = []
    for first, last in bounds:
        calls = int(missing[np.searchsorted(times, first) : np.searchsorted(times, last)].sum())
        if calls:
            chunks.append(Chunk(_time(first), _time(last), calls))
    return ChunkPlan(
        start=start,
        end=end,
        first=found["all_first"],
        last=found["all_last"],
        partitions=found["partitions"],
        calls=int(missing.sum() + answered.sum()),
        answered=int(answered.sum()),
        chunks=tuple(chunks),
    )


_EXTENT = """
    SELECT (SELECT min(sealed_at) FROM partitions) AS all_first, (SELECT max(sealed_at) FROM partitions) AS all_last,
           min(sealed_at) AS first, max(sealed_at) AS last, count(*) AS partitions
    FROM scoped_partitions
"""

# A call of a partition happens at its `sealed_at`, one of an item with the first partition in scope that holds it.
_CALLS = """
    WITH done AS (
        SELECT DISTINCT kind, entity_id, partition_no, source_digest FROM asked SEMI JOIN answers USING (request_key)
    ),
    calls AS (
        SELECT p.sealed_at, d.entity_id IS NOT NULL AS answered
        FROM (SELECT *, unnest({user_kinds}::VARCHAR[]) AS kind FROM scoped_partitions) p
        LEFT JOIN (SELECT DISTINCT kind, entity_id, partition_no FROM done) d
            ON d.kind = p.kind AND d.entity_id = p.user_id AND d.partition_no = p.partition_no
        WHERE p.kind <> 'user_shift' OR p.partition_no > 0
        UNION ALL
        SELECT min(p.sealed_at), bool_or(d.entity_id IS NOT NULL)
        FROM (SELECT sealed_at, unnest(items) AS item_id FROM scoped_partitions) p
        JOIN scoped_items i USING (item_id)
        LEFT JOIN (SELECT DISTINCT entity_id, source_digest FROM done WHERE kind = 'item_facts') d
            ON d.entity_id = i.item_id AND d.source_digest = i.digest
        WHERE {with_items}
        GROUP BY item_id
    )
    SELECT epoch_us(sealed_at) AS at, count(*) FILTER (WHERE NOT answered) AS missing,
           count(*) FILTER (WHERE answered) AS answered
    FROM calls GROUP BY sealed_at ORDER BY sealed_at
"""


def _calls_by_time(con: duckdb.DuckDBPyConnection, knowledge: KnowledgeConfig) -> tuple[Ints, Ints, Ints]:
    """Ascending instants in microseconds, and how many calls of each are missing and how many answered."""
    user_kinds = [str(kind) for kind in knowledge.kinds if kind in (Kind.USER_SUMMARY, Kind.USER_SHIFT)]
    table = con.sql(
        _CALLS.format(user_kinds=user_kinds, with_items=str(Kind.ITEM_FACTS in knowledge.kinds).lower())
    ).to_arrow_table()
    times, missing, answered = (table.column(name).to_numpy().astype(np.int64) for name in table.column_names)
    return times, missing, answered


def _by_calls(times: Ints, missing: Ints, most: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    if not len(times):
        return
    total = np.cumsum(missing)
    first, done = start, 0
    while first < end:
        # The longest run of instants with at most so many calls, and at least one instant.
        stop = int(np.searchsorted(total, done + most, side="right"))
        stop = max(stop, int(np.searchsorted(times, first)) + 1)
        last = int(times[stop]) if stop < len(times) else end
        yield first, last
        first, done = last, int(total[min(stop, len(total)) - 1])


def _by_days(anchor: int, days: float, start: int, end: int) -> Iterator[tuple[int, int]]:
    step = max(round(days * 86_400_000_000), 1)
    first = anchor + (start - anchor) // step * step
    while first < end:
        yield max(first, start), min(first + step, end)
        first += step


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)
