"""Rows of a Parquet or CSV file that somebody else made, as plain values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from warehouse.errors import InputError

_BATCH_ROWS = 8192
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# No row of a CSV file may be longer.
_BLOCK_BYTES = 32 << 20


def column_names(path: Path) -> list[str]:
    """The columns of a file. Raises InputError for one that cannot be read, or is neither Parquet nor CSV."""
    with _reading(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                names: list[str] = file.schema_arrow.names
        else:
            with _open_csv(path, None) as reader:
                names = reader.schema.names
    return names


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows of a file with these columns; of a CSV file every value is a string, as types cannot be told there.

    Raises InputError for a file that cannot be read.
    """
    with _reading(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns)):
                    yield from batch.to_pylist()
        else:
            with _open_csv(path, columns) as reader:
                for batch in reader:
                    yield from batch.to_pylist()


def id_of(value: object) -> str | None:
    """An id as the warehouse has it; None for what is none. Raises TypeError for neither text nor a whole number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(f"{value!r} is neither text nor a whole number")


def time_of(value: object) -> datetime | None:
    """A time given as a timestamp (UTC where it has no zone), as seconds since 1970, or as text of either.

    Raises ValueError for anything else, and for a time that no calendar has, as of milliseconds taken for seconds.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = int(value) if value.strip().lstrip("-").isdigit() else datetime.fromisoformat(value.strip())
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no time")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{value!r} is no time in seconds since 1970") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.suffix != ".parquet" and path.suffix not in _DELIMITERS:
            raise InputError(f"{path} is neither .parquet nor .csv nor .tsv. Convert it to one of them.")
        yield
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}. Check the path.") from error
    except (pa.ArrowException, OSError) as error:
        words = str(error).rstrip(".")
        remedy = "Check that the file is whole."
        if "UTF8" in words:
            remedy = "Save it as UTF-8."
        elif "straddling" in words:
            remedy = f"A row has more than {_BLOCK_BYTES >> 20} MiB; shorten its text, or use Parquet."
        raise InputError(f"{path} cannot be read: {words}. {remedy}") from error


def _open_csv(path: Path, columns: Sequence[str] | None) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        path,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES),
        # A text may hold line breaks.
        parse_options=pa.csv.ParseOptions(delimiter=_DELIMITERS[path.suffix], newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(columns or ()), column_types={name: pa.string() for name in columns or ()}
        ),
    )
