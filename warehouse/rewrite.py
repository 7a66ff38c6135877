"""Parquet files written anew without some of their rows, or with some changed; all others stay as they are."""

from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from warehouse.sql import quote, reading_stored
from warehouse.store import ROW_GROUP_ROWS, FileRef, TableWriter

Rows = NDArray[np.int64]

Edit = Callable[[pa.Table], tuple[pa.Table, NDArray[np.bool_]]]
"""Gets some rows; gives back what is to stand in their places, and which of these places are kept."""


def rows_where(
    con: duckdb.DuckDBPyConnection, files: Sequence[Path], condition: str, *, grown: bool = False
) -> dict[Path, Rows]:
    """Places of the rows for which the SQL `condition` is true, by file; files without such a row are left out.

    Only the columns that the condition names are read. `grown`: some files lack columns that others have.
    """
    if not files:
        return {}
    listing = ", ".join(quote(str(file)) for file in files)
    with reading_stored(files):
        found = con.sql(
            "SELECT filename, file_row_number FROM "
            f"read_parquet([{listing}], filename = true, file_row_number = true, union_by_name = {str(grown).lower()}) "
            f"AS stored WHERE {condition} ORDER BY filename, file_row_number"
        ).to_arrow_table()
    if not found.num_rows:
        return {}
    names = found.column("filename").combine_chunks().dictionary_encode()
    places, codes = found.column("file_row_number").to_numpy(), np.asarray(names.indices)
    by_name = {name: places[codes == code] for code, name in enumerate(names.dictionary.to_pylist())}
    return {file: by_name[str(file)] for file in files if str(file) in by_name}


def rewrite(path: Path, out: Path, rows: Rows, edit: Edit | None = None) -> FileRef | None:
    """The file `out` with the rows of `path`, except that those at the places `rows` are dropped, or go through `edit`.

    It has the schema of `path`, which may be `out`: then it is replaced in one step. None, and no file `out`, where no
    row is left. Memory holds one batch of rows.
    """
    with reading_stored([path]), pq.ParquetFile(path) as file, TableWriter(out, file.schema_arrow) as writer:
        start = 0
        for batch in file.iter_batches(ROW_GROUP_ROWS):
            table = pa.Table.from_batches([batch], file.schema_arrow)
            first, last = np.searchsorted(rows, (start, start + len(table)))
            writer.write(_changed(table, rows[first:last] - start, edit))
            start += len(table)
    assert writer.ref is not None
    if not writer.ref.rows:
        out.unlink()
        return None
    return writer.ref


def _changed(table: pa.Table, places: Rows, edit: Edit | None) -> pa.Table:
    if not len(places):
        return table
    kept = np.ones(len(table), bool)
    kept[places] = False
    if edit is None:
        return table.filter(pa.array(kept))
    edited, stays = edit(table.take(pa.array(places)))
    order = np.arange(len(table))
    order[places] = len(table) + np.arange(len(places))
    kept[places[stays]] = True
    both = pa.concat_tables([table, edited.cast(table.schema)])
    return both.take(pa.array(order[kept]))
