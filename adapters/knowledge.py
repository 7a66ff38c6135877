"""Stored knowledge as vectors per user and partition, and per item version: what adapters train on and publish from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from adapters.fusion import mean_fusion
from adapters.ladder import Climbed, Membership, climb, group_vectors
from warehouse.answers import IMPORTED, answers_view
from warehouse.keys import DIGEST_BYTES
from warehouse.schemas import (
    GROUP_MEMBERS,
    GROUPS,
    ITEM_VERSIONS,
    PARTITIONS,
    REQUESTS,
    TIMESTAMP,
    Rung,
    embeddings_schema,
)
from warehouse.sql import connect, parquet_view, quote

USER_KIND, SHIFT_KIND, ITEM_KIND = "user_summary", "user_shift", "item_facts"
GROUP_KINDS = {USER_KIND: ("group_likes", "group_dislikes"), ITEM_KIND: ("group_items",)}

_NO_TEXTS = ""


@dataclass(frozen=True)
class Stored:
    """Where the knowledge lies, and which of it is meant: one engine, one encoder, one prompt version per kind.

    Texts that were made elsewhere count beside the engine's. Only `kinds` are read; with a group kind among them,
    entities without knowledge of their own take that of their group (`adapters.ladder`).
    """

    requests: Sequence[Path]
    knowledge: Sequence[Path]
    embeddings: Sequence[Path]
    engine_id: str
    encoder_id: str
    dim: int
    prompt_versions: Mapping[str, str]
    kinds: Sequence[str] = (USER_KIND, ITEM_KIND)
    partitions: Sequence[Path] = ()
    items: Sequence[Path] = ()
    groups: Sequence[Path] = ()
    group_members: Sequence[Path] = ()

    def group_kinds(self, kind: str) -> tuple[str, ...]:
        """The kinds of groups that stand in for knowledge of `kind`."""
        return tuple(group for group in GROUP_KINDS[kind] if group in self.kinds)


@dataclass(frozen=True)
class EntityVectors:
    """What is known of entities of one kind from when on, with the vector each row may use.

    `rows`, in order of (entity_id, valid_from): entity_id, partition_no, valid_from, request_key, source_digest,
    prompt_version, status, model, rung, texts_digest (of all texts in the vector), and `confirms`: true where a row
    says again what an earlier one says, which matters only if something else was published for that instant.
    `vectors` is [n, d] float32; a row without usable knowledge is zero and False in `has_vector` [n].
    """

    rows: pa.Table
    vectors: np.ndarray
    has_vector: np.ndarray

    def known(self) -> "EntityVectors":
        """Only the rows with a vector."""
        return self.take(np.flatnonzero(self.has_vector))

    def take(self, index: np.ndarray) -> "EntityVectors":
        """The rows at these positions."""
        return EntityVectors(self.rows.take(pa.array(index, pa.int64())), self.vectors[index], self.has_vector[index])


def user_vectors(stored: Stored) -> EntityVectors:
    """One row per answered partition; its vector is the mean over the user's partitions up to it (mean fusion).

    A partition counts with the mean of its summary and its shift. Where its own texts are unusable, the mean of the
    earlier ones stands; where there is none, the ladder decides.
    """
    return _read(stored, USER_KIND, "true")


def item_vectors(stored: Stored) -> EntityVectors:
    """One row per answered item version, with the embedding of its facts, or what the ladder gives instead."""
    return _read(stored, ITEM_KIND, "true")


def in_chunks(
    stored: Stored, kind: str, chunk_rows: int = 200_000, only: pa.Table | None = None
) -> Iterator[EntityVectors]:
    """The rows of `user_vectors` or `item_vectors` in pieces of about `chunk_rows`, an entity never split.

    With `only`, those of the entities in its column entity_id.
    """
    if only is not None and not only.num_rows:
        return
    among = "true" if only is None else "entity_id IN (SELECT entity_id FROM wanted)"
    with connect() as con:
        if only is not None:
            con.register("wanted", only)
        parquet_view(con, "requests", stored.requests, REQUESTS)
        parquet_view(con, "members", stored.group_members, GROUP_MEMBERS)
        [(rows,)] = con.execute(
            f"SELECT (SELECT count(*) FROM requests WHERE kind = $kind AND {among}) + "
            f"(SELECT count(*) FROM members WHERE list_contains($groups, kind) AND {among})",
            {"kind": kind, "groups": list(stored.group_kinds(kind))},
        ).fetchall()
    chunks = max(1, -(-rows // chunk_rows))
    for chunk in range(chunks):
        yield _read(stored, kind, f"{among} AND hash(entity_id) % {chunks} = {chunk}", only)


def _read(stored: Stored, kind: str, condition: str, only: pa.Table | None = None) -> EntityVectors:
    with connect() as con:
        if only is not None:
            con.register("wanted", only)
        parquet_view(con, "requests", stored.requests, REQUESTS)
        parquet_view(con, "embeddings", stored.embeddings, embeddings_schema(stored.dim))
        answers_view(con, stored.knowledge)
        own = _load(con, stored, kind, condition) if kind in stored.kinds else _nothing(stored.dim)
        if kind == USER_KIND:
            shifts = _load(con, stored, SHIFT_KIND, condition) if SHIFT_KIND in stored.kinds else _nothing(stored.dim)
            own = _fuse(_merge(own, shifts))
        groups = stored.group_kinds(kind)
        if not groups:
            return own
        memberships = _memberships(con, stored, groups, condition)
        climbed = climb(
            own.rows.column("entity_id"),
            own.rows.column("valid_from"),
            own.has_vector,
            _universe(con, stored, kind, condition),
            memberships,
            stored.dim,
        )
        return _with_rungs(own, climbed, kind)


def _load(con: duckdb.DuckDBPyConnection, stored: Stored, kind: str, condition: str) -> EntityVectors:
    """Answered calls of one kind in order of (entity, partition, time), with the vector of each text that has one."""
    table: pa.Table = con.sql(
        f"""
        SELECT r.entity_id, r.partition_no, r.as_of AS valid_from, r.request_key, r.source_digest,
               r.prompt_version, k.status, k.model, e.vector
        FROM (
            SELECT r.*, k.status, k.model FROM requests r JOIN answers k USING (request_key)
            WHERE r.kind = $kind AND {condition}
                AND ((r.engine_id = $engine AND r.prompt_version = $version)
                     OR starts_with(r.engine_id, {quote(IMPORTED)}))
            QUALIFY row_number() OVER (
                PARTITION BY entity_id, partition_no, source_digest
                ORDER BY k.status = 'ok' DESC, r.engine_id = $engine DESC, r.created_at DESC, r.request_key
            ) = 1
        ) r
        JOIN (SELECT request_key, status, model FROM answers) k USING (request_key)
        LEFT JOIN (SELECT DISTINCT ON (request_key) request_key, vector
                   FROM embeddings SEMI JOIN (FROM requests WHERE kind = $kind AND {condition}) USING (request_key)
                   WHERE encoder_id = $encoder) e ON e.request_key = r.request_key AND k.status = 'ok'
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
    keys = table.column("request_key").to_pylist()
    digests = [key if known else _NO_TEXTS for key, known in zip(keys, has_vector, strict=True)]
    return EntityVectors(_annotated(table.drop_columns(["vector"]), has_vector, digests), vectors, has_vector)


def _annotated(rows: pa.Table, has_vector: np.ndarray, digests: Sequence[str]) -> pa.Table:
    rungs = np.where(has_vector, str(Rung.OWN), str(Rung.NONE))
    for name, column in (
        ("rung", pa.array(rungs.tolist(), pa.string())),
        ("texts_digest", pa.array(list(digests), pa.string())),
        ("confirms", pa.array(np.zeros(len(has_vector), bool))),
    ):
        rows = rows.append_column(name, column)
    return rows


def _nothing(dim: int) -> EntityVectors:
    schema = pa.schema(
        [
            ("entity_id", pa.string()),
            ("partition_no", pa.int32()),
            ("valid_from", TIMESTAMP),
            ("request_key", pa.string()),
            ("source_digest", pa.string()),
            ("prompt_version", pa.string()),
            ("status", pa.string()),
            ("model", pa.string()),
        ]
    )
    none = np.zeros(0, bool)
    return EntityVectors(_annotated(schema.empty_table(), none, []), np.zeros((0, dim), np.float32), none)


def _merge(summaries: EntityVectors, shifts: EntityVectors) -> EntityVectors:
    """Summaries whose vector is the mean of the summary's and the shift's, as far as there are any."""
    if not shifts.has_vector.any():
        return summaries
    known = shifts.known()
    place = {
        key: row
        for row, key in enumerate(
            zip(known.rows.column("entity_id").to_pylist(), known.rows.column("partition_no").to_pylist(), strict=True)
        )
    }
    vectors, has = summaries.vectors.copy(), summaries.has_vector.copy()
    digests = summaries.rows.column("texts_digest").to_pylist()
    shift_keys = known.rows.column("texts_digest").to_pylist()
    entities, numbers = (summaries.rows.column(name).to_pylist() for name in ("entity_id", "partition_no"))
    for row, key in enumerate(zip(entities, numbers, strict=True)):
        other = place.get(key)
        if other is not None:
            vectors[row] = (vectors[row] + known.vectors[other]) / 2 if has[row] else known.vectors[other]
            has[row] = True
            digests[row] = _digest_of([digests[row], shift_keys[other]])
    rows = summaries.rows.drop_columns(["rung", "texts_digest", "confirms"])
    return EntityVectors(_annotated(rows, has, digests), vectors, has)


def _fuse(loaded: EntityVectors) -> EntityVectors:
    if not loaded.has_vector.any():
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
    digests, before = [], _NO_TEXTS
    for row, digest in enumerate(loaded.rows.column("texts_digest").to_pylist()):
        before = before if row and users[row] == users[row - 1] else _NO_TEXTS
        before = _digest_of([before, digest]) if digest and before else digest or before
        digests.append(before)
    rows = loaded.rows.drop_columns(["rung", "texts_digest", "confirms"])
    return EntityVectors(_annotated(rows, has, digests), vectors, has)


def _digest_of(parts: Sequence[str]) -> str:
    return blake2b("/".join(parts).encode(), digest_size=DIGEST_BYTES).hexdigest()


def _universe(con: duckdb.DuckDBPyConnection, stored: Stored, kind: str, condition: str) -> pa.Table:
    """Everybody who gets a row: entity_id, and the partition_no, valid_from and source_digest of its first row."""
    if kind == USER_KIND:
        parquet_view(con, "partitions", stored.partitions, PARTITIONS)
        query = (
            "SELECT user_id AS entity_id, partition_no, sealed_at AS valid_from, digest AS source_digest "
            "FROM partitions QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY partition_no) = 1"
        )
    else:
        parquet_view(con, "items", stored.items, ITEM_VERSIONS)
        query = (
            "SELECT item_id AS entity_id, NULL::INTEGER AS partition_no, valid_from, digest AS source_digest "
            "FROM items QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from, created_at) = 1"
        )
    table: pa.Table = con.sql(f"FROM ({query}) WHERE {condition} ORDER BY entity_id").to_arrow_table()
    return table


def _memberships(
    con: duckdb.DuckDBPyConnection, stored: Stored, kinds: Sequence[str], condition: str
) -> list[Membership]:
    """By kind of group: who is in which leaf from when on, and the vector that the leaf stands for."""
    parquet_view(con, "groups", stored.groups, GROUPS)
    parquet_view(con, "group_members", stored.group_members, GROUP_MEMBERS)
    found = []
    for kind in kinds:
        tree: pa.Table = con.sql(
            "SELECT group_id, parent_id, generation, as_of FROM groups WHERE kind = $kind ORDER BY group_id",
            params={"kind": kind},
        ).to_arrow_table()
        members: pa.Table = con.sql(
            "SELECT entity_id, group_id, generation, joined_at FROM group_members "
            f"WHERE kind = $kind AND {condition} ORDER BY entity_id, generation",
            params={"kind": kind},
        ).to_arrow_table()
        texts = _load(con, stored, kind, "true")
        found.append(Membership(members, group_vectors(tree, texts.rows, texts.vectors, texts.has_vector)))
    return found


def _with_rungs(own: EntityVectors, climbed: Climbed, kind: str) -> EntityVectors:
    """The entities' own rows and those that the ladder adds, in order of (entity, time)."""
    if not climbed.rows.num_rows:
        return own
    confirming = np.asarray(climbed.own_row >= 0)
    source = np.maximum(climbed.own_row, 0)
    added = climbed.rows
    if confirming.any():
        repeated = own.rows.take(pa.array(source, pa.int64()))
        taken = pa.array(confirming)
        for name in ("partition_no", "request_key", "source_digest", "prompt_version", "status", "model", "rung",
                     "texts_digest"):  # fmt: skip
            merged = pa.compute.if_else(taken, repeated.column(name), added.column(name))
            added = added.set_column(added.schema.get_field_index(name), name, merged)
    vectors = climbed.vectors.copy()
    vectors[confirming] = own.vectors[source[confirming]] if confirming.any() else 0
    added = added.append_column("confirms", pa.array(confirming))
    rows = pa.concat_tables([own.rows, added.select(own.rows.column_names).cast(own.rows.schema)])
    has = np.concatenate([own.has_vector, climbed.has_vector | confirming])
    together = EntityVectors(rows, np.concatenate([own.vectors, vectors]), has)
    order = pa.compute.sort_indices(
        rows.append_column("at", pa.array(np.arange(rows.num_rows))),
        [("entity_id", "ascending"), ("valid_from", "ascending"), ("at", "ascending")],
    )
    return together.take(order.to_numpy())
