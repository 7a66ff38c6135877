"""From stored tables to a trained adapter: labelled samples as of their time; and the shelf that adapters stand on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa

from adapters.knowledge import EntityVectors
from adapters.samples import Samples, build_samples
from adapters.trained import TrainedAdapter
from warehouse.errors import ConfigError
from warehouse.labels import LabelRule
from warehouse.schemas import BEHAVIOURS, ITEM_VERSIONS
from warehouse.sql import connect, parquet_view

FOLDER = "adapters"

_LATEST_ITEMS = (
    "SELECT item_id, attributes FROM items "
    "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY created_at DESC, valid_from DESC) = 1"
)


@dataclass(frozen=True)
class LabelledEvents:
    """Where labelled behaviours lie: their files, the catalogue's, what is positive, and a categorical attribute."""

    behaviours: Sequence[Path]
    items: Sequence[Path]
    positive: LabelRule
    category: str | None
    # More events than fit in memory are cut to a stable sample of whole users.
    max_events: int


def labelled_samples(
    events: LabelledEvents, users: EntityVectors, items: EntityVectors, history_length: int
) -> Samples:
    """One sample per event, in order of time; `user_row` and `item_row` index `users.vectors` and `items.vectors`.

    Only events of users with a vector, if any user has one: the others teach a backbone about ids, not the adapter.
    Raises ConfigError when `category` is an attribute that no item has.
    """
    with connect() as con:
        parquet_view(con, "behaviours", events.behaviours, BEHAVIOURS)
        informed = users.known().rows.select(["entity_id"])
        con.register("informed", informed)
        of_interest = "user_id IN (SELECT entity_id FROM informed)" if informed.num_rows else "true"
        [(total,)] = con.execute(f"SELECT count(*) FROM behaviours WHERE {of_interest}").fetchall()
        share = min(1.0, events.max_events / max(total, 1))
        table = con.sql(
            f"""
            SELECT user_id, item_id, ts, ({events.positive.sql}) AS positive FROM behaviours
            WHERE {of_interest} AND hash(user_id) % 1000000 < {round(share * 1_000_000)}
            ORDER BY ts, user_id, item_id
            """
        ).to_arrow_table()
    return build_samples(
        table.drop_columns(["positive"]),
        np.asarray(table.column("positive").combine_chunks().to_numpy(zero_copy_only=False), dtype=bool),
        vector_rows(users, "user_id"),
        vector_rows(items, "item_id"),
        items=_catalogue(events),
        category=events.category,
        history_length=history_length,
    )


def check_category(items: Sequence[Path], category: str | None) -> None:
    """Raise ConfigError, naming those there are, when `category` is an attribute that no stored item has.

    A catalogue without items refuses nothing.
    """
    if category is None:
        return
    with connect() as con:
        parquet_view(con, "items", items, ITEM_VERSIONS)
        reader = con.sql(f"SELECT DISTINCT attributes FROM ({_LATEST_ITEMS})").to_arrow_reader()
        found: set[str] = set()
        for batch in reader:
            for attributes in batch.column("attributes").to_pylist():
                found.update(name for name, value in orjson.loads(attributes).items() if value is not None)
            if category in found:
                return
        [(rows,)] = con.execute("SELECT count(*) FROM items").fetchall()
    if rows:
        raise ConfigError(
            f"`labels.category` is {category!r}, an attribute that no item has; they have "
            f"{', '.join(sorted(found)) or 'none'}. Name one of these, or leave the key out."
        )


def vector_rows(vectors: EntityVectors, entity: str) -> pa.Table:
    """Columns `entity`, valid_from and row: from when on, exclusively, a row of `vectors` may be used."""
    known = np.flatnonzero(vectors.has_vector)
    rows = vectors.rows.take(pa.array(known))
    return pa.table({entity: rows.column("entity_id"), "valid_from": rows.column("valid_from"), "row": pa.array(known)})


def find_adapter(root: Path, encoder_id: str, out_dim: int) -> TrainedAdapter | None:
    """The newest adapter of the warehouse that takes vectors of `encoder_id` and gives `out_dim` numbers, or None."""
    for folder in sorted((root / FOLDER).glob("[0-9]*"), reverse=True):
        adapter = TrainedAdapter.load(folder)
        if adapter.meta.encoder_id == encoder_id and adapter.meta.config.out_dim == out_dim:
            return adapter
    return None


def shelve_adapter(root: Path, adapter: TrainedAdapter) -> Path:
    """The folder that `adapter` was saved to: `<number>-<version>`, the highest number being the newest."""
    numbers = [int(m[1]) for f in (root / FOLDER).glob("*") if (m := re.match(r"(\d+)-", f.name))]
    folder = root / FOLDER / f"{max(numbers, default=0) + 1:06d}-{adapter.meta.version[:16]}"
    adapter.save(folder)
    return folder


def _catalogue(events: LabelledEvents) -> pa.Table | None:
    if events.category is None:
        return None
    check_category(events.items, events.category)
    with connect() as con:
        parquet_view(con, "items", events.items, ITEM_VERSIONS)
        rows = con.execute(_LATEST_ITEMS).fetchall()
    values = {item: orjson.loads(attributes).get(events.category) for item, attributes in rows}
    names = pa.array([_first(value) for value in values.values()], pa.string())
    return pa.table({"item_id": pa.array(values, pa.string()), events.category: names})


def _first(value: object) -> str | None:
    if isinstance(value, list):
        return str(value[0]) if value else None
    return None if value is None else str(value)
