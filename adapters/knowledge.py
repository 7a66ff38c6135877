"""Stored knowledge as vectors per user and partition, and per item version: what adapters train on and publish from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.fusion import mean_fusion
from adapters.ladder import OK, Climbed, Membership, climb, group_vectors
from adapters.texts import UserTexts
from warehouse.answers import IMPORTED, answers_view
from warehouse.keys import texts_digest
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
_BATCH_ROWS = 8192


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
    `vectors` is [n, d] float32; a row without usable knowledge is zero and False in `has_vector` [n]. `texts`, of users
    only, are row for row the single texts that the vectors are means of.
    """

    rows: pa.Table
    vectors: np.ndarray
    has_vector: np.ndarray
    texts: UserTexts | None = None

    def known(self) -> "EntityVectors":
        """Only the rows with a vector."""
        return self.take(np.flatnonzero(self.has_vector))

    def take(self, index: np.ndarray) -> "EntityVectors":
        """The rows at these positions; nothing is copied where that is all of them."""
        if len(index) == len(self.has_vector) and np.array_equal(index, np.arange(len(index))):
            return self
        texts = None if self.texts is None else self.texts.take(index)
        rows = self.rows.take(pa.array(index, pa.int64()))
        return EntityVectors(rows, self.vectors[index], self.has_vector[index], texts)


def user_vectors(stored: Stored) -> EntityVectors:
    """One row per answered partition; its vector is the mean over the user's partitions up to it (mean fusion).

    A partition counts with the mean of its summary and its shift. Where its own texts are unusable, the mean of the
    earlier ones stands; where there is none, the ladder decides.
    """
    return _read(stored, USER_KIND, "true")


def item_vectors(stored: Stored) -> EntityVectors:
    """One row per answered item version, with the embedding of its facts, or what the ladder gives instead.

    Where a version's text is unusable, that of the version before it stands.
    """
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
    if not rows and not stored.group_kinds(kind):
        return
    chunks = max(1, -(-rows // chunk_rows))
    for chunk in range(chunks):
        yield _read(stored, kind, f"{among} AND hash(entity_id) % {chunks} = {chunk}", only)


def _read(stored: Stored, kind: str, condition: str, only: pa.Table | None = None) -> EntityVectors:
    with connect() as con:
        if only is not None:
            con.register("wanted", only)
        parquet_view(con, "requests", stored.requests, REQUESTS)
        parquet_view(con, "embeddings", stored.embeddings, embeddings_schema(stored.dim))
        own = _load(con, stored, kind, condition) if kind in stored.kinds else _nothing(stored.dim)
        if kind == USER_KIND:
            shifts = _load(con, stored, SHIFT_KIND, condition) if SHIFT_KIND in stored.kinds else _nothing(stored.dim)
            own = _fuse(_merge(own, shifts))
        else:
            own = _carry(own)
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
        return _with_rungs(own, climbed)


def _load(con: duckdb.DuckDBPyConnection, stored: Stored, kind: str, condition: str) -> EntityVectors:
    """Answered calls of one kind in order of (entity, partition, time), with the vector of each text that has one."""
    con.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE asked AS SELECT * EXCLUDE (prompt) FROM requests
        WHERE kind = $kind AND {condition}
            AND ((engine_id = $engine AND prompt_version = $version) OR starts_with(engine_id, {quote(IMPORTED)}))
        """,
        {"kind": kind, "engine": stored.engine_id, "version": stored.prompt_versions[kind]},
    )
    answers_view(con, stored.knowledge, among="asked")
    rows: pa.Table = con.sql(
        """
        SELECT r.entity_id, r.partition_no, r.as_of AS valid_from, r.request_key, r.source_digest,
               r.prompt_version, k.status, k.model
        FROM asked r JOIN answers k USING (request_key)
        QUALIFY row_number() OVER (
            PARTITION BY entity_id, partition_no, source_digest
            ORDER BY k.status = 'ok' DESC, r.engine_id = $engine DESC, r.created_at DESC, r.request_key
        ) = 1
        ORDER BY r.entity_id, r.partition_no, r.as_of, r.source_digest
        """,
        params={"engine": stored.engine_id},
    ).to_arrow_table()
    vectors, has_vector = _vectors(con, stored, rows)
    keys = rows.column("request_key").to_pylist()
    digests = [key if known else _NO_TEXTS for key, known in zip(keys, has_vector, strict=True)]
    return EntityVectors(_annotated(rows, has_vector, digests), vectors, has_vector)


def _vectors(con: duckdb.DuckDBPyConnection, stored: Stored, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, d] of the usable texts of `rows`, and which rows have one [n]; the others are zero."""
    vectors, has_vector = np.zeros((rows.num_rows, stored.dim), np.float32), np.zeros(rows.num_rows, bool)
    places = pa.table({"request_key": rows.column("request_key"), "place": pa.array(np.arange(rows.num_rows))})
    con.register("places", places.filter(pc.equal(rows.column("status"), OK)))
    # Vectors stream past the few keys into their places. DuckDB guesses how many there are, and may put them all into
    # the join's hash table instead.
    con.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    try:
        found = con.sql(
            "SELECT place, vector FROM embeddings JOIN places USING (request_key) WHERE encoder_id = $encoder",
            params={"encoder": stored.encoder_id},
        ).to_arrow_reader(_BATCH_ROWS)
        for batch in found:
            at = batch.column("place").to_numpy()
            vectors[at] = batch.column("vector").flatten().to_numpy().reshape(-1, stored.dim)
            has_vector[at] = True
    finally:
        # The setting is the database's, which all connections share.
        con.execute("RESET disabled_optimizers")
    con.unregister("places")
    return vectors, has_vector


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
    """Summaries whose vector is the mean of the summary's and the shift's, as far as there are any.

    `texts` are the texts and partitions, each row having its own partition only.
    """
    own = UserTexts.single(summaries.vectors, _moments(summaries.rows))
    own = replace(own, summary=np.where(summaries.has_vector, own.summary, -1))
    if not shifts.has_vector.any():
        return replace(summaries, texts=own)
    known = shifts.known()
    place = {
        key: row
        for row, key in enumerate(
            zip(known.rows.column("entity_id").to_pylist(), known.rows.column("partition_no").to_pylist(), strict=True)
        )
    }
    vectors, has = summaries.vectors.copy(), summaries.has_vector.copy()
    shift_at = np.full(len(has), -1, np.int64)
    digests = summaries.rows.column("texts_digest").to_pylist()
    shift_keys = known.rows.column("texts_digest").to_pylist()
    entities, numbers = (summaries.rows.column(name).to_pylist() for name in ("entity_id", "partition_no"))
    for row, key in enumerate(zip(entities, numbers, strict=True)):
        other = place.get(key)
        if other is not None:
            vectors[row] = (vectors[row] + known.vectors[other]) / 2 if has[row] else known.vectors[other]
            has[row] = True
            shift_at[row] = len(vectors) + other
            digests[row] = texts_digest([digests[row], shift_keys[other]])
    rows = summaries.rows.drop_columns(["rung", "texts_digest", "confirms"])
    texts = replace(own, vectors=np.concatenate([own.vectors, known.vectors]), shift=shift_at)
    return EntityVectors(_annotated(rows, has, digests), vectors, has, texts)


def _fuse(loaded: EntityVectors) -> EntityVectors:
    """A user's rows with the mean over the partitions up to each."""
    if not loaded.has_vector.any():
        return loaded
    users, newest, has = _newest_known(loaded)
    numbers = np.asarray(loaded.rows.column("partition_no"))
    keep = loaded.has_vector
    # Vectors are the bulk of what is held here, and mostly all are there: no copy then.
    if keep.all():
        vectors = mean_fusion(users, numbers, loaded.vectors)
    else:
        vectors, position = np.zeros_like(loaded.vectors), np.cumsum(keep) - 1
        vectors[has] = mean_fusion(users[keep], numbers[keep], loaded.vectors[keep])[position[newest[has]]]
    # A row may use all of its user's partitions up to its own.
    begins = np.append(True, users[1:] != users[:-1])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(users)), 0))
    assert loaded.texts is not None, "partitions come with their texts"
    digests, before = [], _NO_TEXTS
    for begin, digest in zip(begins.tolist(), loaded.rows.column("texts_digest").to_pylist(), strict=True):
        before = _NO_TEXTS if begin else before
        before = texts_digest([before, digest]) if digest and before else digest or before
        digests.append(before)
    rows = loaded.rows.drop_columns(["rung", "texts_digest", "confirms"])
    return EntityVectors(_annotated(rows, has, digests), vectors, has, replace(loaded.texts, first=first))


def _all_texts(own: UserTexts, stay: np.ndarray, climbed: Climbed, added: pa.Table) -> UserTexts:
    """The texts of the own rows that `stay` and of the `added` ones: what stands for an entity counts as its only text,
    and a row that repeats an own one has that one's texts and age."""
    single = UserTexts.single(climbed.vectors, _moments(added))
    single = replace(single, last=np.where(climbed.has_vector, single.last, single.first))
    both = own.extend(single)
    rows = len(own) + np.arange(len(single))
    repeated = climbed.own_row >= 0
    rows[repeated] = climbed.own_row[repeated]
    return both.take(np.concatenate([stay, rows]))


def _moments(rows: pa.Table) -> np.ndarray:
    """`valid_from` in microseconds since 1970, int64."""
    return np.asarray(rows.column("valid_from").cast(TIMESTAMP).cast(pa.int64()).to_numpy(), np.int64)


def _carry(loaded: EntityVectors) -> EntityVectors:
    """An item's rows; where a version's own text is unusable, that of the version before it stands."""
    if loaded.has_vector.all():
        return loaded
    _items, newest, has = _newest_known(loaded)
    source = np.maximum(newest, 0)
    vectors = np.where(has[:, None], loaded.vectors[source], 0).astype(np.float32)
    texts = loaded.rows.column("texts_digest").to_pylist()
    digests = [texts[row] if known else _NO_TEXTS for row, known in zip(source, has, strict=True)]
    rows = loaded.rows.drop_columns(["rung", "texts_digest", "confirms"])
    return EntityVectors(_annotated(rows, has, digests), vectors, has)


def _newest_known(loaded: EntityVectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By row: its entity's number, the newest row with a vector up to it, and whether that is of the same entity."""
    entities = np.asarray(loaded.rows.column("entity_id").combine_chunks().dictionary_encode().indices)
    newest = np.maximum.accumulate(np.where(loaded.has_vector, np.arange(len(entities)), -1))
    return entities, newest, (newest >= 0) & (entities[np.maximum(newest, 0)] == entities)


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


def _with_rungs(own: EntityVectors, climbed: Climbed) -> EntityVectors:
    """The entities' own rows and those that the ladder adds or puts in their place, in order of (entity, time)."""
    if not climbed.rows.num_rows:
        return own
    added = climbed.rows
    repeated, replaced = climbed.own_row >= 0, climbed.replaces >= 0
    lineage = ("partition_no", "request_key", "source_digest", "prompt_version", "status", "model")
    # Whose place a row takes says when and of what it is, and why something else stands there.
    for taken, source, names in (
        (repeated, climbed.own_row, (*lineage, "rung", "texts_digest")),
        (replaced, climbed.replaces, (*lineage, "valid_from")),
    ):
        if taken.any():
            rows = own.rows.take(pa.array(np.maximum(source, 0), pa.int64()))
            for name in names:
                merged = pc.if_else(pa.array(taken), rows.column(name), added.column(name))
                added = added.set_column(added.schema.get_field_index(name), name, merged)
    vectors = climbed.vectors.copy()
    vectors[repeated] = own.vectors[climbed.own_row[repeated]]
    added = added.append_column("confirms", pa.array(climbed.confirms))
    stay = np.setdiff1d(np.arange(own.rows.num_rows), climbed.replaces)
    kept = own.take(stay)
    rows = pa.concat_tables([kept.rows, added.select(kept.rows.column_names).cast(kept.rows.schema)])
    has = np.concatenate([kept.has_vector, climbed.has_vector | repeated])
    texts = None if own.texts is None else _all_texts(own.texts, stay, climbed, added)
    together = EntityVectors(rows, np.concatenate([kept.vectors, vectors]), has, texts)
    order = pc.sort_indices(
        rows.append_column("at", pa.array(np.arange(rows.num_rows))),
        [("entity_id", "ascending"), ("valid_from", "ascending"), ("at", "ascending")],
    )
    return together.take(order.to_numpy())
