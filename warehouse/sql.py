"""DuckDB connections over stored tables: UTC everywhere, no extension downloads, empty tables keep their columns."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa


def connect(memory_limit_gb: float | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory connection whose timestamps are in UTC; it spills to disk past `memory_limit_gb`."""
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET autoinstall_known_extensions = false")
    con.execute("SET enable_progress_bar = false")
    if memory_limit_gb is not None:
        con.execute(f"SET memory_limit = '{memory_limit_gb}GB'")
    return con


def quote(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def parquet_view(con: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema) -> None:
    """A temporary view `name` over `files`, or an empty one with the columns of `schema` when there are none."""
    if files:
        listing = ", ".join(quote(str(file)) for file in files)
        con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT * FROM read_parquet([{listing}])")
    else:
        con.register(name, schema.empty_table())
