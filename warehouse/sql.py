"""DuckDB connections over stored tables: UTC everywhere, no extension downloads, empty tables keep their columns."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import duckdb
import pyarrow as pa

from warehouse.store import read_table

# The files behind the views of each open connection: DuckDB finds out at query time that one of them is damaged.
_viewed: WeakKeyDictionary[duckdb.DuckDBPyConnection, list[Path]] = WeakKeyDictionary()


@contextmanager
def connect(memory_limit_gb: float | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection, open for the block, with timestamps in UTC. What is made in it must be TEMP: the
    process's connections share one database, whose start costs more than most of our queries. One with a memory limit
    has its own, and spills to disk past it.

    Raises CorruptWarehouse where the block fails because a file behind a `parquet_view` is missing or damaged.
    """
    con = _database().cursor() if memory_limit_gb is None else _new_database(f"{memory_limit_gb}GB")
    files: list[Path] = []
    _viewed[con] = files
    try:
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        with reading_stored(files):
            yield con
    finally:
        con.close()


def _new_database(memory_limit: str | None = None) -> duckdb.DuckDBPyConnection:
    # Files are read as they are now, not as they were when another connection read them.
    config: dict[str, str | bool] = {"autoinstall_known_extensions": False, "enable_external_file_cache": False}
    return duckdb.connect(config=config | ({} if memory_limit is None else {"memory_limit": memory_limit}))


@cache
def _database() -> duckdb.DuckDBPyConnection:
    return _new_database()


# A forked process would have the database's memory, but none of its threads.
os.register_at_fork(before=_database.cache_clear)


@contextmanager
def reading_stored(files: Iterable[Path]) -> Iterator[None]:
    """Turns the block's error into CorruptWarehouse where one of the stored `files` is to blame for it."""
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, pa.ArrowException, OSError):
        # DuckDB has many types and words for a damaged file and names it in some of them only; reading tells for sure.
        for file in files:
            read_table([file], None)
        raise


def quote(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def moment(at: datetime) -> str:
    """A time as an SQL literal."""
    return f"TIMESTAMPTZ {quote(at.isoformat())}"


def parquet_view(
    con: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path], schema: pa.Schema, *, grown: bool = False
) -> None:
    """A temporary view `name` over `files`, or an empty one with the columns of `schema` when there are none.

    `grown` says that the schema has gained columns: files of an older Lorestream may lack some, which are null then.
    """
    if not files:
        con.register(name, schema.empty_table())
        return
    _viewed[con].extend(files)
    listing = ", ".join(quote(str(file)) for file in files)
    if grown:
        con.register(f"{name}_columns", schema.empty_table())
        source = f"read_parquet([{listing}], union_by_name = true) UNION ALL BY NAME FROM {name}_columns"
    else:
        source = f"read_parquet([{listing}])"
    con.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS FROM {source}")


def records(con: duckdb.DuckDBPyConnection, query: str, arguments: Sequence[object] = ()) -> list[dict[str, Any]]:
    """The rows that a query gives, each as a mapping; `?` in it stand for `arguments`."""
    rows: list[dict[str, Any]] = con.sql(query, params=list(arguments)).to_arrow_table().to_pylist()
    return rows
