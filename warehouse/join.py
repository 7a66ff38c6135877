"""The as-of join: each impression gets the newest feature row that the chosen clock lets it see.

DuckDB finds which row that is, on whole numbers alone; Arrow then takes the vectors, which therefore are neither
sorted nor copied more than once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.clock import Clock, reigning_rows, tie_columns
from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.schemas import TIMESTAMP
from warehouse.sql import connect, quote

Fill = Literal["zeros", "null"]

_VECTOR = pa.list_(pa.float32())
# One Arrow list array indexes at most 2**31 numbers; slices of this many rows stay below it up to 2048 per vector.
_TAKE_ROWS = 2**20


def asof_join(
    impressions: pa.Table,
    features: pa.Table | Sequence[Path],
    *,
    entity: str,
    on: str,
    ts: str,
    dim: int,
    fill: Fill = "zeros",
    clock: Clock = "event",
) -> pa.Table:
    """`impressions`, same rows in the same order, with four columns more (`user` stands for `item` too):

    - user_augment: list<float32>; where there is no vector, `dim` zeros or null as `fill` says
    - has_user_augment: bool, whether `user_augment` is a real vector
    - user_valid_from, user_rung: of the matched row; null when there was none yet

    `features` is a table or the Parquet files of one, `entity` its key (user_id or item_id), `on` and `ts` are the
    impressions' id and time columns. A null id or time matches nothing. `dim` is the length of every vector.
    Raises UsageError for an absent column, an id or time of a type that cannot be read, and a name that is taken.
    """
    side = entity.removesuffix("_id")
    names = (f"{side}_augment", f"has_{side}_augment", f"{side}_valid_from", f"{side}_rung")
    for name in names:
        if name in impressions.column_names:
            raise UsageError(f"The impressions already have a column `{name}`. Drop or rename it before the join.")
    probe = pa.table({"id": ids(impressions, on), "us": microseconds(impressions, ts)})
    rows, match = _match(probe, features, entity, clock)
    vectors, has_vector = _vectors(rows["augment"], match, dim, fill)
    added = (vectors, has_vector, _take(rows["valid_from"].cast(TIMESTAMP), match), _take(rows["rung"], match))
    for name, column in zip(names, added, strict=True):
        impressions = impressions.append_column(name, column)
    return impressions


def ids(impressions: pa.Table, column: str) -> pa.ChunkedArray:
    """The id column as strings; whole numbers are written in decimal. Raises UsageError for any other type."""
    values = _column(impressions, column)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_floating(kind):
        raise UsageError(
            f"`{column}` of the impressions is {kind}, and ids are strings: 1.0 is not the id `1`. "
            f"Cast it to whole numbers or strings first, in pandas: df[{column!r}].astype('Int64')."
        )
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (textual or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UsageError(f"`{column}` of the impressions is {kind}; an id column holds strings or whole numbers.")
    return values.cast(pa.string())


def microseconds(impressions: pa.Table, column: str) -> pa.ChunkedArray:
    """The time column in microseconds since 1970 UTC [int64]; a time without zone is in UTC. Raises UsageError."""
    values = _column(impressions, column)
    if not (pa.types.is_timestamp(values.type) or pa.types.is_null(values.type)):
        raise UsageError(
            f"`{column}` of the impressions is {values.type}, not a timestamp, and numbers do not say their unit. "
            f"Convert it first, in pandas: pd.to_datetime(df[{column!r}], unit='s', utc=True)."
        )
    # Digits beyond the microsecond are cut off: an event never comes to lie after a row that it lay before.
    return values.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())


def _column(impressions: pa.Table, column: str) -> pa.ChunkedArray:
    if impressions.column_names.count(column) != 1:
        raise UsageError(
            f"The impressions have {'no' if column not in impressions.column_names else 'more than one'} column "
            f"`{column}`; they have {', '.join(impressions.column_names)}. Name yours: join(..., user=, item=, ts=)."
        )
    return impressions[column]


def _match(
    probe: pa.Table, features: pa.Table | Sequence[Path], entity: str, clock: Clock
) -> tuple[pa.Table, pa.Array]:
    """The feature rows of entities in `probe`, and for each row of `probe` the index of its match among them."""
    if not isinstance(features, pa.Table) and not features:
        return _NO_ROWS, pa.nulls(len(probe), pa.int64())
    try:
        with connect() as con:
            if isinstance(features, pa.Table):
                con.register("features", features)
                return _match_in(con, probe, "features", entity, clock)
            source = f"read_parquet([{', '.join(quote(str(path)) for path in features)}])"
            return _match_in(con, probe, source, entity, clock)
    except duckdb.Error as error:
        if isinstance(features, pa.Table):
            raise
        listing = ", ".join(map(str, features))
        raise CorruptWarehouse(
            f"The feature files cannot be read: {error} Restore the file from a backup, or read another snapshot. "
            f"Files of this one: {listing}"
        ) from error


def _match_in(
    con: duckdb.DuckDBPyConnection, probe: pa.Table, source: str, entity: str, clock: Clock
) -> tuple[pa.Table, pa.Array]:
    con.register("probe", probe.append_column("place", _places(len(probe))))
    # Numbers stand for ids: the as-of join hashes and compares them in a third of the time.
    con.execute(
        "CREATE TEMP TABLE codes AS SELECT id, (row_number() OVER ())::INTEGER AS code "
        "FROM (SELECT DISTINCT id FROM probe WHERE id IS NOT NULL AND us IS NOT NULL)"
    )
    order = ("valid_from", *tie_columns(entity))
    rows = con.sql(
        f"SELECT code, {', '.join(order)}, augment, rung FROM {source} AS f JOIN codes ON f.{entity} = codes.id"
    ).to_arrow_table()
    con.register("rows", rows.select(["code", *order]).append_column("row", _places(len(rows))))
    matched = con.sql(
        "SELECT p.place, m.row FROM (SELECT place, us, code FROM probe JOIN codes USING (id)) AS p "
        f"ASOF JOIN ({reigning_rows('rows', entity, ['row'], clock, key='code')}) AS m "
        "ON p.code = m.code AND p.us >= m.visible_us"
    ).to_arrow_table()
    # Where each place stands among the matches, null where it has none: cheaper than to let DuckDB sort them.
    places = pc.inverse_permutation(matched["place"].combine_chunks(), max_index=len(probe) - 1)
    return rows, matched["row"].combine_chunks().take(places)


def _vectors(augment: pa.ChunkedArray, match: pa.Array, dim: int, fill: Fill) -> tuple[pa.ChunkedArray, pa.Array]:
    """The matched vectors, one per element of `match`, and whether each is a real one."""
    vectors = augment.cast(_VECTOR)
    real = pc.is_valid(vectors).combine_chunks()
    numbers = [chunk.flatten() for chunk in vectors.chunks]
    count, length = real.true_count, sum(map(len, numbers))
    if length != count * dim:
        raise CorruptWarehouse(
            f"The feature files hold {count} vectors of {length} numbers in all, and not {dim} in each. Restore the "
            "files from a backup, or read another snapshot."
        )
    which = pc.if_else(real, pc.cumulative_sum(real.cast(pa.int64()), start=-1), None).take(match)
    has_vector = which.is_valid()
    if fill == "zeros":
        which = which.fill_null(count)
    # One block of vectors of one length, zeros last: a take copies whole vectors, five times as fast as lists.
    block = pa.concat_arrays([*numbers, pa.array([0.0] * dim, pa.float32())])
    # Arrow takes with one thread, and lets others go on.
    with ThreadPoolExecutor(pa.cpu_count()) as pool:
        parts = (which.slice(start, _TAKE_ROWS) for start in range(0, len(match), _TAKE_ROWS))
        slices = list(pool.map(lambda part: _lists(block, part, dim), parts))
    return pa.chunked_array(slices, _VECTOR), has_vector


def _lists(block: pa.Array, which: pa.Array, dim: int) -> pa.Array:
    """The vectors of `block` that `which` numbers, as lists; null where it is null."""
    known, taken = which.is_valid(), which.drop_null()
    starts = pc.multiply(pc.cumulative_sum(known.cast(pa.int64()), start=-1), dim)
    # A null offset means a null list.
    offsets = pa.concat_arrays([pc.if_else(known, starts, None), pa.array([len(taken) * dim], pa.int64())])
    if dim:
        block = pa.FixedSizeListArray.from_arrays(block, dim).take(taken).flatten()
    return pa.ListArray.from_arrays(offsets.cast(pa.int32()), block)


def _take(column: pa.ChunkedArray, match: pa.Array) -> pa.Array:
    return column.combine_chunks().take(match)


def _places(length: int) -> pa.Array:
    """0, 1, 2, ... [int64]."""
    return pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), length), start=-1)


_NO_ROWS = pa.table(
    {"valid_from": pa.array([], TIMESTAMP), "augment": pa.array([], _VECTOR), "rung": pa.array([], pa.string())}
)
