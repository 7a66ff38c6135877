"""Feature rows as a source for Feast: Parquet with the time an event must have to see a row, and when it was made.

Feast joins the newest row with `event_timestamp <= ts` where this warehouse wants `valid_from < ts`, so the time
written is one microsecond after `valid_from`. Of rows with one `event_timestamp` Feast takes the one created last.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from warehouse.clock import ENTITY, newest
from warehouse.export.vectors import before
from warehouse.schemas import FEATURES, TIMESTAMP
from warehouse.sql import connect, parquet_view
from warehouse.store import TableWriter

_ROWS_PER_BATCH = 128 * 1024


def write_feast(out: Path, table: str, files: Sequence[Path], at: datetime | None, cut: str) -> tuple[Path, int]:
    """The written `<table><cut>.parquet`, every row that an event at `at` may see, and their number."""
    entity = ENTITY[table]
    side = entity.removesuffix("_id")
    schema = pa.schema(
        [
            pa.field(entity, pa.string()),
            pa.field("event_timestamp", TIMESTAMP),
            pa.field("created_timestamp", TIMESTAMP),
            pa.field(f"{side}_augment", pa.list_(pa.float32())),
            pa.field(f"{side}_rung", pa.string()),
        ]
    )
    path = out / f"{table}{cut}.parquet"
    with connect() as con, TableWriter(path, schema) as writer:
        parquet_view(con, "features", files, FEATURES[table])
        rows = con.sql(
            f"SELECT {entity}, valid_from + INTERVAL 1 MICROSECOND AS event_timestamp, "
            f"created_at AS created_timestamp, augment AS {side}_augment, rung AS {side}_rung "
            f"FROM features WHERE {before(at)} "
            # Feast would choose between rows of one event and one creation by chance.
            f"QUALIFY row_number() OVER (PARTITION BY {entity}, valid_from, created_at ORDER BY {newest(entity)}) = 1 "
            f"ORDER BY {entity}, valid_from, created_at"
        )
        for batch in rows.to_arrow_reader(_ROWS_PER_BATCH):
            writer.write(batch)
    assert writer.ref is not None
    return path, writer.ref.rows
