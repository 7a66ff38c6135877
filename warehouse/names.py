"""The names that a catalogue knows: what a text may speak of without having invented it."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pyarrow as pa

from warehouse.schemas import ITEM_VERSIONS
from warehouse.sql import connect, parquet_view


def attribute_columns(files: Sequence[Path], schema: pa.Schema) -> set[str]:
    """Names of the attributes that any stored item or user (`schema`) has a value of."""
    found: set[str] = set()
    with connect() as con:
        parquet_view(con, "entities", files, schema)
        for batch in con.sql("SELECT DISTINCT attributes FROM entities").to_arrow_reader():
            for attributes in batch.column("attributes").to_pylist():
                found.update(name for name, value in orjson.loads(attributes).items() if value is not None)
    return found


def catalogue_names(items: Sequence[Path]) -> set[str]:
    """Titles and textual attribute values of all stored versions of items."""
    names: set[str] = set()
    with connect() as con:
        parquet_view(con, "items", items, ITEM_VERSIONS)
        for batch in con.sql("SELECT DISTINCT title, attributes FROM items").to_arrow_reader():
            names.update(batch.column("title").to_pylist())
            for attributes in batch.column("attributes").to_pylist():
                for value in orjson.loads(attributes).values():
                    names.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))
    return names
