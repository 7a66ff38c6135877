"""A warehouse as data for a lift: its labelled events, the texts published about them, and the same without the LLM."""

from collections.abc import Mapping, Sequence

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from adapters.fusion import mean_fusion
from adapters.knowledge import EntityVectors, Stored, item_vectors, user_vectors
from adapters.lift.data import LiftData, Source, source_of
from adapters.lift.movielens import Encode
from adapters.samples import Samples
from adapters.training import LabelledEvents, labelled_samples
from warehouse.schemas import ITEM_VERSIONS, PARTITIONS
from warehouse.sql import connect, parquet_view

NOTES = ("User texts and their controls are fused by the mean over a user's partitions, as of each event.",)


def stored_data(name: str, stored: Stored, events: LabelledEvents, encode: Encode, history_length: int) -> LiftData:
    """The warehouse's events with `summaries`, `facts`, `titles` and `histories`, each from when on it was known.

    Raises InputError when there is no labelled event.
    """
    users, items = user_vectors(stored), item_vectors(stored)
    samples = labelled_samples(events, users, items, history_length)
    catalogue = _catalogue(stored)
    titles = [describe(*catalogue[i]) for i in catalogue]
    sources = {
        "titles": _of_entities(
            "item", encode("titles", titles), pa.array(catalogue), None, samples.items, samples.item
        ),
        **_histories(stored, samples, {i: title for i, (title, _) in catalogue.items()}, encode),
    }
    for label, side, vectors in (("facts", "item", items), ("summaries", "user", users)):
        known = vectors.known()
        if known.rows.num_rows:
            sources[label] = _of_vectors("item" if side == "item" else "user", known, samples)
    return LiftData(name, samples, sources, rungs=_rungs(samples, users, items), notes=NOTES)


def describe(title: str, attributes: Mapping[str, object]) -> str:
    """What the tables say of an item, in words: no LLM."""
    said = [title]
    for key, value in attributes.items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            said.append(f"{key.replace('_', ' ')}: {shown}")
    return ". ".join(said) + "."


def _catalogue(stored: Stored) -> dict[str, tuple[str, dict[str, object]]]:
    with connect() as con:
        parquet_view(con, "items", stored.items, ITEM_VERSIONS)
        rows = con.execute(
            "SELECT item_id, title, attributes FROM items "
            "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from, created_at) = 1 ORDER BY item_id"
        ).fetchall()
    return {item: (title, orjson.loads(attributes)) for item, title, attributes in rows}


def _histories(stored: Stored, samples: Samples, titles: Mapping[str, str], encode: Encode) -> dict[str, Source]:
    """The partitions' events in words, fused over a user's partitions like the summaries."""
    with connect() as con:
        parquet_view(con, "partitions", stored.partitions, PARTITIONS)
        table: pa.Table = con.sql(
            "SELECT user_id, partition_no, sealed_at, items, values FROM partitions ORDER BY user_id, partition_no"
        ).to_arrow_table()
    if not table.num_rows:
        return {}
    told = [
        "; ".join(f"{titles.get(i, i)}, {value:g}" for i, value in zip(items, values, strict=True))
        for items, values in zip(table["items"].to_pylist(), table["values"].to_pylist(), strict=True)
    ]
    user = table["user_id"].combine_chunks()
    codes = np.asarray(user.dictionary_encode().indices)
    fused = mean_fusion(codes, np.asarray(table["partition_no"]), encode("histories", told))
    return {
        "histories": _of_entities("user", fused, user, table["sealed_at"], samples.users, samples.user),
    }


def _of_vectors(side: str, vectors: EntityVectors, samples: Samples) -> Source:
    entity, ids = vectors.rows.column("entity_id").combine_chunks(), samples.users if side == "user" else samples.items
    holder = samples.user if side == "user" else samples.item
    return _of_entities(side, vectors.vectors, entity, vectors.rows.column("valid_from"), ids, holder)


def _of_entities(
    side: str,
    vectors: np.ndarray,
    entity: pa.Array,
    valid_from: pa.ChunkedArray | None,
    ids: pa.Array,
    holder: np.ndarray,
) -> Source:
    codes = np.asarray(pc.fill_null(pc.index_in(entity, value_set=ids), -1)).astype(np.int64)
    # What the tables say of an item holds always.
    since = np.full(len(codes), np.iinfo(np.int64).min // 2)
    if valid_from is not None:
        since = np.asarray(valid_from.cast(pa.int64()).to_numpy(), dtype=np.int64)
    return source_of("item" if side == "item" else "user", vectors, codes, since, holder)


def _rungs(samples: Samples, users: EntityVectors, items: EntityVectors) -> np.ndarray | None:
    """Whose knowledge each sample has, `user own, item group` and so on; None where all of it is the entities' own."""
    named: list[Sequence[str]] = []
    for vectors, row in ((users, samples.user_row), (items, samples.item_row)):
        rungs = np.array([*vectors.rows.column("rung").to_pylist(), "none"], dtype=object)
        named.append(rungs[row])
    rungs = np.array([f"user {user}, item {item}" for user, item in zip(*named, strict=True)])
    return rungs if len(np.unique(rungs)) > 1 else None
