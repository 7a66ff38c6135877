"""`features.duckdb`: views and macros over the current snapshot, for SQL with no Python of ours.

    ATTACH 'features.duckdb' AS features (READ_ONLY);
    SELECT * FROM features.lorestream.user_features_latest;
    SELECT * FROM features.lorestream.features_asof('impressions');     -- needs columns user_id, item_id, ts
    SELECT * FROM features.lorestream.features_asof_known('impressions');     -- only what had been made by `ts`

Everything stands in the schema `lorestream`, and again in `main`, so that `ATTACH ... AS lorestream` makes
`lorestream.user_features_latest` work. The file holds no rows: it names the Parquet files by absolute path, because
DuckDB resolves relative ones against the reader's working folder. A moved warehouse needs `rebuild(root)` once.

DuckDB 2.0 reads a file's headers through one open and all else through a second. The headers say where the list of
free blocks lies, which moves with the length of the views. An ATTACH whose two opens lie on either side of a
replacement may therefore fail with an IOException (seen once beside 1,250 publications); what it reads is never a
mixture. Attach again.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from warehouse.clock import ENTITY, Clock, newest, reigning_rows, visible_us
from warehouse.schemas import FEATURES, FEATURES_CONTRACT
from warehouse.snapshot import Snapshot, read_manifest
from warehouse.sql import quote
from warehouse.store import replacing

CATALOG_NAME = "features.duckdb"
SCHEMAS = ("lorestream", "main")

# Macros by clock: `features_asof` goes by events, `features_asof_known` by what was known at the time.
MACRO_SUFFIX: Mapping[Clock, str] = {"event": "", "known": "_known"}

_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.int32(): "INTEGER",
    pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    pa.list_(pa.float32()): "FLOAT[]",
}


def rebuild(root: Path) -> Path:
    """The path of the catalogue, made anew for the current snapshot and renamed into place.

    Readers that have the old one open keep it. Raises CorruptWarehouse when a file of the snapshot is gone.
    """
    target = root / CATALOG_NAME
    snapshot = read_manifest(root).current_snapshot()
    with replacing(target) as temporary:
        con = duckdb.connect(str(temporary))
        try:
            # One transaction: otherwise each of some thirty statements waits for the disk.
            con.execute(f"BEGIN; {'; '.join(_statements(root, snapshot))}; COMMIT")
        finally:
            con.close()
    # Someone who opened the old file for writing may have left a log, and DuckDB would replay it onto this one.
    target.with_name(f"{CATALOG_NAME}.wal").unlink(missing_ok=True)
    return target


def _statements(root: Path, snapshot: Snapshot | None) -> Iterator[str]:
    """SQL that defines all views and macros. Macros read the files themselves: unlike a view's, their names are
    looked up in the reader's database, where ours may be attached under any name."""
    sources = {table: _source(root, table, snapshot) for table in FEATURES}
    for schema in SCHEMAS:
        yield f"CREATE SCHEMA IF NOT EXISTS {schema}"
        snapshot_id = "NULL" if snapshot is None else quote(snapshot.snapshot_id)
        yield (
            f"CREATE VIEW {schema}.current_snapshot AS "
            f"SELECT {snapshot_id}::VARCHAR AS snapshot_id, {quote(str(root.resolve()))} AS warehouse"
        )
        for table, source in sources.items():
            entity = ENTITY[table]
            yield f"CREATE VIEW {schema}.{table} AS SELECT * FROM {source}"
            yield (
                f"CREATE VIEW {schema}.{table}_latest AS SELECT * FROM {source} "
                f"QUALIFY row_number() OVER (PARTITION BY {entity} ORDER BY valid_from DESC, {newest(entity)}) = 1"
            )
        for clock, suffix in MACRO_SUFFIX.items():
            yield from _macros(schema, sources, clock, suffix)


def _source(root: Path, table: str, snapshot: Snapshot | None) -> str:
    """SQL for the rows of `table`; without files, an empty relation of its columns."""
    columns = ", ".join(f"NULL::{_SQL_TYPES[field.type]} AS {field.name}" for field in FEATURES[table])
    empty = f"(SELECT {columns} WHERE false)"
    files = [] if snapshot is None else snapshot.files(root, table)
    if snapshot is None or not files:
        return empty
    listing = ", ".join(quote(str(file)) for file in files)
    if all(ref.contract == FEATURES_CONTRACT for ref in snapshot.tables[table]):
        return f"read_parquet([{listing}])"
    # Only here, as DuckDB then opens every file whatever is asked.
    return f"(FROM {empty} UNION ALL BY NAME FROM read_parquet([{listing}], union_by_name = true))"


def _asof(source: str, entity: str, clock: Clock) -> str:
    """SQL that joins `source` to the impressions `i`, under the alias `user` or `item`."""
    side = entity.removesuffix("_id")
    rows = reigning_rows(source, entity, ("valid_from", "augment", "rung"), clock)
    # Microseconds since 1970 rather than timestamps: they read a `ts` without time zone as UTC in every session.
    return (
        f'ASOF LEFT JOIN ({rows}) AS "{side}" '
        f'ON i.{entity} = "{side}".{entity} AND epoch_us(i.ts) >= "{side}".visible_us'
    )


def _columns(side: str) -> str:
    return (
        f'"{side}".augment AS {side}_augment, "{side}".augment IS NOT NULL AS has_{side}_augment, '
        f'"{side}".valid_from AS {side}_valid_from, "{side}".rung AS {side}_rung'
    )


def _macros(schema: str, sources: Mapping[str, str], clock: Clock, suffix: str) -> Iterator[str]:
    joins = {ENTITY[table]: _asof(source, ENTITY[table], clock) for table, source in sources.items()}
    for table, source in sources.items():
        entity = ENTITY[table]
        side = entity.removesuffix("_id")
        yield (
            f"CREATE MACRO {schema}.{table}_asof{suffix}(tbl) AS TABLE "
            f"SELECT i.*, {_columns(side)} FROM query_table(tbl) AS i {joins[entity]}"
        )
        yield (
            f"CREATE MACRO {schema}.{side}_augment_at{suffix}(entity, moment) AS "
            f"(SELECT first(augment ORDER BY valid_from DESC, {newest(entity)}) FROM {source} AS f "
            f"WHERE f.{entity} = entity AND {visible_us(clock)} <= epoch_us(moment))"
        )
    yield (
        f"CREATE MACRO {schema}.features_asof{suffix}(tbl) AS TABLE "
        f"SELECT i.*, {', '.join(_columns(entity.removesuffix('_id')) for entity in joins)} "
        f"FROM query_table(tbl) AS i {' '.join(joins.values())}"
    )
