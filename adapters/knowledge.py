"""Stored knowledge as vectors per user and partition, and per item version: what adapters train on and publish from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from adapters.fusion import mean_fusion
from warehouse.schemas import KNOWLEDGE, REQUESTS, embeddings_schema
from warehouse.sql import connect, parquet_view

USER_KIND, ITEM_KIND = "user_summary", "item_facts"


@dataclass(frozen=True)
class Stored:
    """Where the knowledge lies, and which of it is meant: one engine, one encoder, one prompt version per kind."""

    requests: Sequence[Path]
    knowledge: Sequence[Path]
    embeddings: Sequence[Path]
    engine_id: str
    encoder_id: str
    dim: int
    prompt_versions: Mapping[str, str]


@dataclass(frozen=True)
class EntityVectors:
    """Answered calls of one kind in order of (entity_id, partition_no), with the vector each row may use.

    `rows`: entity_id, partition_no, valid_from, request_key, source_digest, prompt_version, status, model.
    `vectors` is [n, d] float32; a row without usable knowledge is zero and False in `has_vector` [n].
    """

    rows: pa.Table
    vectors: np.ndarray
    has_vector: np.ndarray

    def known(self) -> "EntityVectors":
        """Only the rows with a vector."""
        keep = np.flatnonzero(self.has_vector)
        return EntityVectors(self.rows.take(pa.array(keep)), self.vectors[keep], self.has_vector[keep])


def user_vectors(stored: Stored) -> EntityVectors:
    """One row per answered partition; its vector is the mean over the user's partitions up to it (mean fusion).

    Where a partition's own text is unusable, the mean of the earlier ones stands; where there is none, nothing.
    """
    return _fuse(_load(stored, USER_KIND, "true"))


def item_vectors(stored: Stored) -> EntityVectors:
    """One row per answered item version, with the embedding of its facts."""
    return _load(stored, ITEM_KIND, "true")


def in_chunks(stored: Stored, kind: str, chunk_rows: int = 200_000) -> Iterator[EntityVectors]:
    """The rows of `user_vectors` or `item_vectors` in pieces of about `chunk_rows`, an entity never split."""
    with connect() as con:
        parquet_view(con, "requests", stored.requests, REQUESTS)
        [(rows,)] = con.execute("SELECT count(*) FROM requests WHERE kind = ?", [kind]).fetchall()
    chunks = max(1, -(-rows // chunk_rows))
    for chunk in range(chunks):
        piece = _load(stored, kind, f"hash(r.entity_id) % {chunks} = {chunk}")
        yield _fuse(piece) if kind == USER_KIND else piece


def _load(stored: Stored, kind: str, condition: str) -> EntityVectors:
    with connect() as con:
        parquet_view(con, "requests", stored.requests, REQUESTS)
        parquet_view(con, "knowledge", stored.knowledge, KNOWLEDGE)
        parquet_view(con, "embeddings", stored.embeddings, embeddings_schema(stored.dim))
        table: pa.Table = con.sql(
            f"""
            SELECT r.entity_id, r.partition_no, r.as_of AS valid_from, r.request_key, r.source_digest,
                   r.prompt_version, k.status, k.model, e.vector
            FROM (SELECT DISTINCT ON (entity_id, partition_no, source_digest) * FROM requests
                  WHERE kind = $kind AND engine_id = $engine AND prompt_version = $version) r
            JOIN (SELECT DISTINCT ON (request_key) request_key, status, model FROM knowledge) k USING (request_key)
            LEFT JOIN (SELECT DISTINCT ON (request_key) request_key, vector FROM embeddings
                       WHERE encoder_id = $encoder) e USING (request_key)
            WHERE {condition}
            ORDER BY r.entity_id, r.partition_no, r.as_of, r.source_digest
            """,
            params={
                "kind": kind,
                "engine": stored.engine_id,
                "version": stored.prompt_versions[kind],
                "encoder": stored.encoder_id,
            },
        ).to_arrow_table()
    column = table.column("vector").combine_chunks()
    has_vector = np.asarray(column.is_valid())
    vectors = np.zeros((table.num_rows, stored.dim), np.float32)
    if has_vector.any():
        vectors[has_vector] = np.asarray(column.drop_null().flatten(), np.float32).reshape(-1, stored.dim)
    return EntityVectors(table.drop_columns(["vector"]), vectors, has_vector)


def _fuse(loaded: EntityVectors) -> EntityVectors:
    known = loaded.known()
    if not known.rows.num_rows:
        return loaded
    users = np.asarray(loaded.rows.column("entity_id").combine_chunks().dictionary_encode().indices)
    numbers = np.asarray(loaded.rows.column("partition_no"))
    keep = loaded.has_vector
    fused = mean_fusion(users[keep], numbers[keep], loaded.vectors[keep])
    # The newest row with knowledge at or before each row, if it belongs to the same user.
    newest = np.maximum.accumulate(np.where(keep, np.arange(len(keep)), -1))
    has = (newest >= 0) & (users[np.maximum(newest, 0)] == users)
    position = np.cumsum(keep) - 1
    vectors = np.zeros_like(loaded.vectors)
    vectors[has] = fused[position[newest[has]]]
    return EntityVectors(loaded.rows, vectors, has)
