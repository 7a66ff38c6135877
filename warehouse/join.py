"""The as-of join by event clock: each impression gets the newest feature row with `valid_from` before its time.

`valid_from` is exclusive, so a row built from an event is never joined to that event (DESIGN section 3, rule 4).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.schemas import TIMESTAMP
from warehouse.sql import connect, quote

Fill = Literal["zeros", "null"]

ENTITY = {"user_features": "user_id", "item_features": "item_id"}

_VECTOR = pa.list_(pa.float32())
# One Arrow list array indexes at most 2**31 numbers; slices of this many rows stay below it up to 2048 per vector.
_TAKE_ROWS = 2**20


def newest(entity: str) -> str:
    """SQL order of rows with one entity and one `valid_from`, the row that counts first."""
    partition = "partition_no DESC, " if entity == "user_id" else ""
    return f"created_at DESC, {partition}snapshot_id DESC"


def newest_per_instant(source: str, entity: str, columns: Sequence[str], where: str = "true") -> str:
    """SQL for one row of `source` per entity and `valid_from`: without ties the as-of match is unique."""
    return (
        f"SELECT {', '.join((entity, *columns))} FROM {source} WHERE {where} "
        f"QUALIFY row_number() OVER (PARTITION BY {entity}, valid_from ORDER BY {newest(entity)}) = 1"
    )


def asof_join(
    impressions: pa.Table,
    features: pa.Table | Sequence[Path],
    *,
    entity: str,
    on: str,
    ts: str,
    dim: int,
    fill: Fill = "zeros",
) -> pa.Table:
    """`impressions`, same rows in the same order, with four columns more (`user` stands for `item` too):

    - user_augment: list<float32>; where there is no vector, `dim` zeros or null as `fill` says
    - has_user_augment: bool, whether `user_augment` is a real vector
    - user_valid_from, user_rung: of the matched row; null when no row was valid yet

    `features` is a table or the Parquet files of one, `entity` its key (user_id or item_id), `on` and `ts` are the
    impressions' id and time columns. A null id or time matches nothing.
    Raises UsageError for an absent column, an id or time of a type that cannot be read, and a name that is taken.
    """
    side = entity.removesuffix("_id")
    names = (f"{side}_augment", f"has_{side}_augment", f"{side}_valid_from", f"{side}_rung")
    for name in names:
        if name in impressions.column_names:
            raise UsageError(f"The impressions already have a column `{name}`. Drop or rename it before the join.")
    probe = pa.table({"id": ids(impressions, on), "us": microseconds(impressions, ts)})
    probe = probe.append_column("row", pa.array(range(len(probe)), pa.int64()))

    rows, match = _match(probe, features, entity)
    vectors, has_vector = _vectors(rows["augment"], match, dim, fill)
    added = (vectors, has_vector, rows["valid_from"].cast(TIMESTAMP).take(match), rows["rung"].take(match))
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


def _match(probe: pa.Table, features: pa.Table | Sequence[Path], entity: str) -> tuple[pa.Table, pa.Array]:
    """The feature rows of entities in `probe`, and for each row of `probe` the index of its match among them."""
    try:
        with connect() as con:
            con.register("probe", probe)
            source = "features"
            if isinstance(features, pa.Table):
                con.register(source, features)
            elif features:
                source = f"read_parquet([{', '.join(quote(str(path)) for path in features)}])"
            else:
                return _NO_ROWS, pa.nulls(len(probe), pa.int64())
            wanted = f"{entity} IN (SELECT id FROM probe)"
            query = newest_per_instant(source, entity, ("valid_from", "augment", "rung"), wanted)
            rows = con.sql(query).to_arrow_table()
            moments = rows["valid_from"].cast(TIMESTAMP).cast(pa.int64())
            row = pa.array(range(len(rows)), pa.int64())
            con.register("moments", pa.table({"id": rows[entity], "us": moments, "row": row}))
            matched = con.sql(
                "SELECT m.row AS match FROM probe AS p ASOF LEFT JOIN moments AS m ON p.id = m.id AND p.us > m.us "
                "ORDER BY p.row"
            ).to_arrow_table()
    except duckdb.Error as error:
        if isinstance(features, pa.Table):
            raise
        listing = ", ".join(map(str, features))
        raise CorruptWarehouse(
            f"The feature files cannot be read: {error} Restore the file from a backup, or read another snapshot. "
            f"Files of this one: {listing}"
        ) from error
    return rows, matched["match"].combine_chunks()


def _vectors(augment: pa.ChunkedArray, match: pa.Array, dim: int, fill: Fill) -> tuple[pa.ChunkedArray, pa.Array]:
    """The matched vectors, one per element of `match`, and whether each is a real one."""
    vectors = augment.cast(_VECTOR).combine_chunks()
    has_vector = pc.fill_null(pc.is_valid(vectors).take(match), False)
    if fill == "zeros":
        match = pc.if_else(has_vector, match, len(vectors))
        vectors = pa.concat_arrays([vectors, pa.array([[0.0] * dim], _VECTOR)])
    slices = [vectors.take(match.slice(start, _TAKE_ROWS)) for start in range(0, len(match), _TAKE_ROWS)]
    return pa.chunked_array(slices, _VECTOR), has_vector


_NO_ROWS = pa.table(
    {"valid_from": pa.array([], TIMESTAMP), "augment": pa.array([], _VECTOR), "rung": pa.array([], pa.string())}
)
