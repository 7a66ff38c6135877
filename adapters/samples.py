"""Labelled samples out of behaviours: histories and knowledge as of each event's time, never later.

A sample is one behaviour. What it may know is strictly older than it: vectors with valid_from < ts, history events
with ts' < ts. Ties see nothing of each other.
"""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.errors import InputError, MissingColumn
from warehouse.schemas import TIMESTAMP

IntArray = npt.NDArray[np.int32 | np.int64]

# Targets looked up at once: bounds the [rows, length] work arrays.
LOOKUP_ROWS = 262_144


@dataclass(frozen=True)
class Samples:
    """Columns of n samples, row for row the behaviours they were made of.

    Entities are codes: `users[user]` and `items[item]` are the ids. `liked` and `disliked` [n, length] hold the item
    codes + 1 of the newest positive and other events before the sample, newest first, 0 where there are no more.
    `user_row` and `item_row` index the vector tables, -1 where no vector was valid yet. `category` [items] is a code
    per item, 0 for none.
    """

    users: pa.Array
    items: pa.Array
    category: np.ndarray
    categories: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    ts: np.ndarray
    label: np.ndarray
    liked: np.ndarray
    disliked: np.ndarray
    user_row: np.ndarray
    item_row: np.ndarray

    def __len__(self) -> int:
        return len(self.ts)

    def take(self, index: np.ndarray) -> Self:
        """The samples at `index` (positions or a mask), with the same entity codes."""
        whole = {"users", "items", "category", "categories"}
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: v if k in whole else v[index] for k, v in columns.items()})


@dataclass(frozen=True)
class TimeSplit:
    """Event time cut in three, in microseconds: train < valid_from <= validation < holdout_from <= holdout."""

    valid_from: int
    holdout_from: int

    def masks(self, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boolean masks of training, validation and holdout rows; every row is in exactly one."""
        return ts < self.valid_from, (ts >= self.valid_from) & (ts < self.holdout_from), ts >= self.holdout_from


def time_split(ts: np.ndarray, validation_fraction: float, holdout_fraction: float) -> TimeSplit:
    """Cuts that leave the newest events for holdout and those before them for validation.

    Fractions are of events; a cut is a time, so events of one instant never straddle it (they go to the later part).
    Raises InputError when `ts` [n] has too few distinct times for three non-empty parts.
    """
    ordered = np.sort(ts)
    n = len(ordered)
    if n == 0:
        raise InputError("No event to split by time.")
    holdout_at = min(int(np.floor(n * (1 - holdout_fraction))), n - 1)
    valid_at = min(int(np.floor(n * (1 - holdout_fraction - validation_fraction))), n - 1)
    split = TimeSplit(int(ordered[valid_at]), int(ordered[holdout_at]))
    if not ordered[0] < split.valid_from < split.holdout_from:
        raise InputError(
            f"{n} events at {len(np.unique(ordered))} distinct times cannot be split into training, "
            f"{validation_fraction:.0%} validation and {holdout_fraction:.0%} holdout. Give more events or finer times."
        )
    return split


def newest_before(
    entity: np.ndarray, ts: np.ndarray, row_entity: np.ndarray, row_ts: np.ndarray, length: int
) -> np.ndarray:
    """Positions of the `length` newest rows of the same entity with row_ts < ts, newest first. int64 [n, length].

    Entities are codes >= 0 (a negative `row_entity` matches nothing). -1 stands where there are no more rows. Among
    rows of one entity and one time, the later row counts as newer.
    """
    # Dense ranks: entity * ranks + rank fits 64 bits where entity * microseconds would not.
    times, rank = np.unique(np.concatenate([row_ts, ts]), return_inverse=True)
    row_rank, rank = rank[: len(row_ts)], rank[len(row_ts) :]
    order = np.lexsort((row_rank, row_entity))
    keys = (row_entity.astype(np.int64) * len(times) + row_rank)[order]
    found = np.full((len(ts), length), -1, dtype=np.int64)
    if len(order) == 0:
        return found
    steps = np.arange(1, length + 1)
    for lo in range(0, len(ts), LOOKUP_ROWS):
        part = slice(lo, lo + LOOKUP_ROWS)
        base = entity[part].astype(np.int64) * len(times)
        start = np.searchsorted(keys, base, side="left")
        end = np.searchsorted(keys, base + rank[part], side="left")
        position = end[:, None] - steps
        found[part] = np.where(position >= start[:, None], order[np.maximum(position, 0)], -1)
    return found


def build_samples(
    behaviours: pa.Table,
    positive: np.ndarray,
    user_rows: pa.Table,
    item_rows: pa.Table,
    *,
    items: pa.Table | None = None,
    category: str | None = None,
    history_length: int = 20,
) -> Samples:
    """One sample per behaviour, in the same order.

    `behaviours` has user_id, item_id, ts; `positive` [n] is its label. `user_rows` (user_id, valid_from, row) and
    `item_rows` (item_id, valid_from, row) say from when on, exclusively, a row of the vector matrices holds; the newest
    one counts. `category` names a column of `items` (string, or a list of which the first counts).

    Raises MissingColumn, or InputError when `positive` has another length.
    """
    _require(behaviours, "behaviours", "user_id", "item_id", "ts")
    _require(user_rows, "user vectors", "user_id", "valid_from", "row")
    _require(item_rows, "item vectors", "item_id", "valid_from", "row")
    positive = np.asarray(positive, dtype=bool)
    if len(positive) != behaviours.num_rows:
        raise InputError(f"{behaviours.num_rows} behaviours came with {len(positive)} labels; give one per row.")
    user, users = _codes(behaviours["user_id"])
    item, items_seen = _codes(behaviours["item_id"])
    ts = _micros(behaviours["ts"])

    def vector_row(entity: np.ndarray, vocabulary: pa.Array, table: pa.Table, key: str) -> IntArray:
        codes = pc.fill_null(pc.index_in(table[key], value_set=vocabulary), -1).to_numpy().astype(np.int64)
        found = newest_before(entity, ts, codes, _micros(table["valid_from"]), 1)[:, 0]
        rows: IntArray = np.append(table["row"].to_numpy().astype(np.int64), -1)
        return np.take(rows, found)

    codes, categories = _categories(items, category, items_seen)
    return Samples(
        users=users,
        items=items_seen,
        category=codes,
        categories=categories,
        user=user,
        item=item,
        ts=ts,
        label=positive.astype(np.float32),
        liked=history(user, item, ts, positive, history_length),
        disliked=history(user, item, ts, ~positive, history_length),
        user_row=vector_row(user, users, user_rows, "user_id"),
        item_row=vector_row(item, items_seen, item_rows, "item_id"),
    )


def history(user: np.ndarray, item: np.ndarray, ts: np.ndarray, mask: np.ndarray, length: int) -> IntArray:
    """Item codes + 1 of each user's `length` newest events strictly before each of n events, as `Samples.liked`.

    Only the events of `mask` [n] are seen, by all.
    """
    rows = np.flatnonzero(mask)
    found = newest_before(user, ts, user[rows], ts[rows], length)
    padded: IntArray = np.append(item[rows] + 1, 0).astype(np.int32)
    return np.take(padded, found)


def _require(table: pa.Table, name: str, *columns: str) -> None:
    for column in columns:
        if column not in table.column_names:
            raise MissingColumn(name, column, table.column_names, "memory")


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Codes of a string column, and the distinct values in order of first appearance."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks() if encoded.num_chunks != 1 else encoded.chunk(0)
    return encoded.indices.to_numpy().astype(np.int32), encoded.dictionary


def _micros(column: pa.ChunkedArray) -> np.ndarray:
    """Microseconds since 1970, int64."""
    return np.asarray(column.cast(TIMESTAMP).cast(pa.int64()).to_numpy(), dtype=np.int64)


def _categories(
    items: pa.Table | None, category: str | None, items_seen: pa.Array
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A category code per seen item (0: none) and the names that codes 1, 2, ... stand for, sorted."""
    if items is None or category is None:
        return np.zeros(len(items_seen), dtype=np.int32), ()
    _require(items, "items", "item_id", category)
    column = items[category]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        filled = pc.if_else(pc.greater(pc.list_value_length(column), 0), column, None)
        column = pc.list_element(filled, 0)
    found = pc.index_in(items_seen, value_set=items["item_id"].combine_chunks())
    values = column.cast(pa.string()).take(found)
    names = sorted(pc.unique(values.drop_null()).to_pylist())
    codes = pc.fill_null(pc.add(pc.index_in(values, value_set=pa.array(names, pa.string())), 1), 0)
    return np.asarray(codes.to_numpy(), dtype=np.int32), tuple(names)
