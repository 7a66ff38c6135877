"""Rows of the public tables: the adapter applied to stored knowledge, only where the current snapshot lacks them."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from adapters.knowledge import ITEM_KIND, USER_KIND, EntityVectors, Stored, in_chunks
from adapters.materialise import materialise_items, materialise_users
from adapters.trained import TrainedAdapter
from warehouse.clock import newest
from warehouse.schemas import FEATURES
from warehouse.sql import connect, parquet_view

_TABLES = {
    "user_features": (USER_KIND, "user_id"),
    "item_features": (ITEM_KIND, "item_id"),
}


def missing_rows(
    stored: Stored,
    adapter: TrainedAdapter,
    published: Mapping[str, Sequence[Path]],
    now: datetime,
    only: pa.Table | None = None,
) -> dict[str, Iterator[pa.Table]]:
    """Rows of `user_features` and `item_features` that `published` lacks, in their columns less `snapshot_id`; in
    pieces, made while they are read.

    A row counts as published when the one that readers see for its entity, source and instant is made of the same
    texts, with the same adapter and rung. An older one does not count: a configuration that is gone back to publishes
    its rows again, newer than those it left for the meantime. A row that only confirms what holds already is published
    where something else was, for that instant. With `only` just the entities in its column entity_id are looked at.
    """
    return {name: _missing(stored, adapter, published.get(name, ()), name, now, only) for name in _TABLES}


def _missing(
    stored: Stored,
    adapter: TrainedAdapter,
    published: Sequence[Path],
    name: str,
    now: datetime,
    only: pa.Table | None,
) -> Iterator[pa.Table]:
    kind, entity = _TABLES[name]
    for piece in in_chunks(stored, kind, only=only):
        fresh = _unpublished(piece, published, name, entity, adapter.meta.version)
        if fresh.rows.num_rows:
            yield _rows(fresh, stored, adapter, name, now)
        # The text vectors are most of a piece: they go before the next one is read.
        del piece, fresh


def _unpublished(
    piece: EntityVectors, files: Sequence[Path], name: str, entity: str, adapter_version: str
) -> EntityVectors:
    keys = piece.rows.select(
        ["entity_id", "valid_from", "source_digest", "request_key", "texts_digest", "rung", "confirms"]
    )
    keys = keys.append_column("position", pa.array(np.arange(keys.num_rows)))
    with connect() as con:
        parquet_view(con, "published", files, FEATURES[name], grown=True)
        con.register("candidates", keys)
        missing = con.sql(
            f"""
            WITH seen AS (
                SELECT {entity} AS entity_id, valid_from, source_digest, request_key, texts_digest, rung,
                       adapter_version
                FROM published WHERE {entity} IN (SELECT entity_id FROM candidates)
                QUALIFY row_number() OVER (
                    PARTITION BY {entity}, valid_from, source_digest ORDER BY {newest(entity)}
                ) = 1
            )
            SELECT position FROM candidates c
            WHERE NOT EXISTS (
                FROM seen s
                WHERE s.entity_id = c.entity_id AND s.valid_from = c.valid_from AND s.source_digest = c.source_digest
                    AND s.rung = c.rung AND s.adapter_version = $adapter
                    -- Rows of an older Lorestream name only one text.
                    AND CASE WHEN s.texts_digest IS NULL THEN s.request_key = c.request_key
                             ELSE s.texts_digest = c.texts_digest END
            ) AND (NOT c.confirms OR EXISTS (
                FROM seen s WHERE s.entity_id = c.entity_id AND s.valid_from = c.valid_from
            ))
            ORDER BY position
            """,
            params={"adapter": adapter_version},
        ).to_arrow_table()
    return piece.take(missing.column("position").to_numpy())


def _rows(fresh: EntityVectors, stored: Stored, adapter: TrainedAdapter, name: str, now: datetime) -> pa.Table:
    kind, entity = _TABLES[name]
    n, has, dim = fresh.rows.num_rows, fresh.has_vector, adapter.meta.config.out_dim
    known = fresh.known()
    if kind == USER_KIND:
        dense = materialise_users(adapter, known.vectors, known.texts)
    else:
        dense = materialise_items(adapter, known.vectors)
    offsets = np.concatenate([[0], np.cumsum(np.where(has, dim, 0))]).astype(np.int32)
    augment = pa.ListArray.from_arrays(pa.array(offsets), pa.array(dense.reshape(-1)), mask=pa.array(~has))
    schema = _schema(name)
    columns: dict[str, object] = {
        entity: fresh.rows.column("entity_id"),
        "created_at": pa.array([now] * n, schema.field("created_at").type),
        "augment": augment,
        "augment_dim": pa.array(np.full(n, dim, np.int32)),
        "encoder_id": pa.array([stored.encoder_id] * n),
        "adapter_version": pa.array([adapter.meta.version] * n),
    }
    for column in fresh.rows.column_names:
        columns.setdefault(column, fresh.rows.column(column))
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


def _schema(name: str) -> pa.Schema:
    schema = FEATURES[name]
    return schema.remove(schema.get_field_index("snapshot_id"))
