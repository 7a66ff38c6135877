"""Where input tables come from: Parquet and CSV files, DuckDB tables and queries, each opened as parts to read.

DuckDB reads, so a source may be larger than memory. A part is one file, or one table or query of a database; every
part is checked on its own, because two files behind one glob may hold a column in different types.
"""

import csv
import glob
import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TextIO, cast

import duckdb
from pydantic import BaseModel, Field, model_validator

from warehouse.errors import InputError, LorestreamError, MissingColumn
from warehouse.keys import digest
from warehouse.schemas import BEHAVIOURS
from warehouse.sql import quote

SUFFIXES = (".parquet", ".csv", ".csv.gz")
DELIMITERS = (",", ";", "\t", "|")


class SourceConfig(BaseModel, frozen=True, extra="forbid"):
    """One input table: files (`path`), or a DuckDB file (`database`) with one of `table` and `query`."""

    # A file or a glob; relative paths start at the folder of the config file.
    path: str | None = None
    database: str | None = None
    table: str | None = None
    query: str | None = None
    # Contract name -> name in the source.
    columns: dict[str, str] = {}
    # What an integer timestamp counts.
    timestamp_unit: Literal["s", "ms", "us"] = "s"

    @model_validator(mode="after")
    def _one_place(self) -> "SourceConfig":
        given = {k: v for k in ("path", "database", "table", "query") if (v := getattr(self, k)) is not None}
        empty = [name for name, value in given.items() if not value.strip()]
        if empty:
            raise ValueError(f"`{empty[0]}` is empty; name a file, a table or a query.")
        if ("path" in given) == ("database" in given):
            raise ValueError(f"give exactly one of `path` and `database`, got {_listing(given)}.")
        if "path" in given and len(given) > 1:
            raise ValueError(f"`table` and `query` belong to a `database`, got {_listing(given)}; drop them.")
        if "database" in given and ("table" in given) == ("query" in given):
            raise ValueError(f"a `database` needs exactly one of `table` and `query`, got {_listing(given)}.")
        twice = {name for name in self.columns.values() if list(self.columns.values()).count(name) > 1}
        if twice:
            raise ValueError(f"`columns` reads {sorted(twice)} twice: {self.columns}. Map each source column once.")
        return self


class InputsConfig(BaseModel, frozen=True, extra="forbid"):
    """The input tables, and how much of them may break the contract."""

    behaviours: SourceConfig
    items: SourceConfig
    users: SourceConfig | None = None
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    # Events later than the run's clock by more are rejected: one would hold back its user's `sealed_at` for ever.
    # None takes them all.
    max_future_days: float | None = Field(1.0, ge=0, le=36_500)
    on_template_tokens: Literal["refuse", "strip"] = "refuse"

    def latest_event(self, now: datetime) -> datetime | None:
        """The last moment at which an event may have happened for a run at `now`; None for any."""
        return None if self.max_future_days is None else now + timedelta(days=self.max_future_days)

    @model_validator(mode="after")
    def _known_names(self) -> "InputsConfig":
        unknown = [name for name in self.behaviours.columns if name not in BEHAVIOURS.names]
        if unknown:
            raise ValueError(
                f"`behaviours.columns` maps {unknown}, which the contract does not have; "
                f"its names are {', '.join(BEHAVIOURS.names)} (contract name = name in the source)."
            )
        return self


def _listing(given: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in given.items()) or "none of them"


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file as it was when it was read. `reading` names how: the same file under another mapping is another read."""

    path: str
    size: int
    mtime_ns: int
    reading: str


def fingerprint(source: SourceConfig, base: Path) -> list[SourceFile]:
    """The files behind `source` in reading order, with size and time of change; a database's write-ahead log is one.

    Raises InputError where there is no such file.
    """
    return [_stamp(path, source) for path in _paths(source, base)]


def _stamp(path: Path, source: SourceConfig) -> SourceFile:
    reading = digest(source.model_dump(include={"table", "query", "columns", "timestamp_unit"}))
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Check the path in [inputs].") from error
    return SourceFile(str(path), stat.st_size, stat.st_mtime_ns, reading)


def _paths(source: SourceConfig, base: Path) -> list[Path]:
    if source.database is not None:
        database = _file(base / Path(source.database).expanduser(), f"`database` = {source.database!r}")
        log = database.with_name(database.name + ".wal")
        return [database, *([log] if log.exists() else [])]
    assert source.path is not None
    place = base / Path(source.path).expanduser()
    if place.exists() or not glob.has_magic(source.path):
        paths = [_file(place, f"`path` = {source.path!r}")]
    else:
        paths = sorted(Path(name).resolve() for name in glob.glob(str(place), recursive=True))
        paths = [path for path in paths if path.is_file()]
        if not paths:
            raise InputError(f"No file matches `path` = {source.path!r} (looked for {place}). Check the pattern.")
    for path in paths:
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(
                f"{path} is not an input file by its name; the suffixes read are {', '.join(SUFFIXES)}. "
                "Rename it, narrow the pattern, or name a DuckDB file with `database` instead of `path`."
            )
    return paths


def _file(path: Path, setting: str) -> Path:
    if path.is_dir():
        raise InputError(f"{setting} is a folder ({path}). Name the files in it, for example {path.name}/*.parquet.")
    if not path.exists():
        raise InputError(f"{setting} does not exist (looked for {path}). Check the path in [inputs].")
    return path.resolve()


@dataclass(frozen=True)
class Part:
    """One thing to read: `relation` is SQL for after FROM, `columns` maps its names to DuckDB types in source order."""

    name: str
    relation: str
    columns: Mapping[str, str]
    is_csv: bool
    files: tuple[SourceFile, ...]


@dataclass(frozen=True)
class BadLine:
    """A line of a CSV file that does not parse."""

    line: int
    text: str
    error: str


def identifier(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def scratch_database(memory_limit: str = "2GB", threads: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that keeps its tables in a temporary folder, gone with the block; times in UTC."""
    with TemporaryDirectory(prefix="lorestream-", ignore_cleanup_errors=True) as folder:
        con = duckdb.connect(f"{folder}/lorestream_scratch.duckdb")
        try:
            con.execute("SET TimeZone = 'UTC'")
            con.execute("SET autoinstall_known_extensions = false")
            con.execute("SET enable_progress_bar = false")
            con.execute(f"SET memory_limit = {quote(memory_limit)}")
            if threads is not None:
                con.execute(f"SET threads = {threads}")
            yield con
        finally:
            con.close()


@contextmanager
def enough_memory(work: str) -> Iterator[None]:
    """Turns DuckDB's lack of memory or disk during `work` into an error that says what to give it."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise LorestreamError(
            f"{work} ran out of memory or scratch space: {_first_line(error)}. "
            "Give the process more memory, or point TMPDIR at a larger disk."
        ) from error


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns DuckDB's complaints about the input `name` into InputError."""
    try:
        with enough_memory(f"Reading {name}"):
            yield
    except duckdb.Error as error:
        raise InputError(
            f"{name} cannot be read: {_first_line(error)}. Nothing was stored. "
            "Mend or remove it, or correct its entry in [inputs]."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def parts(
    con: duckdb.DuckDBPyConnection,
    source: SourceConfig,
    base: Path,
    expected: Collection[str],
    skip: Collection[SourceFile] = (),
) -> Iterator[Part]:
    """The parts of `source` in reading order, without files whose fingerprint is in `skip`.

    `expected` are the source's column names that matter; they tell which delimiter a CSV file has. A query or a view
    is always read: what it shows may change while its file does not. Raises InputError for what cannot be opened.
    """
    stamps = fingerprint(source, base)
    if source.database is not None:
        yield from _database_part(con, source, stamps, skip)
        return
    for stamp in stamps:
        if stamp in skip:
            continue
        if stamp.path.lower().endswith(".parquet"):
            relation = f"read_parquet({quote(glob.escape(stamp.path))}, hive_partitioning = false)"
            with reading(stamp.path):
                yield Part(stamp.path, relation, _columns(con, relation), False, (stamp,))
        else:
            delimiter, names = _csv_header(stamp.path, expected)
            struct = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in names)
            # Every field is read as text and converted by us: type guessing from a sample turns the id 007 into 7.
            relation = (
                f"read_csv({quote(glob.escape(stamp.path))}, auto_detect = false, header = true, quote = '\"', "
                f"escape = '\"', delim = {quote(delimiter)}, compression = {quote(_compression(stamp.path))}, "
                f"columns = {{{struct}}}, store_rejects = true)"
            )
            yield Part(stamp.path, relation, dict.fromkeys(names, "VARCHAR"), True, (stamp,))


def _columns(con: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    return {row[0]: row[1] for row in con.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}


def _database_part(
    con: duckdb.DuckDBPyConnection, source: SourceConfig, stamps: Sequence[SourceFile], skip: Collection[SourceFile]
) -> Iterator[Part]:
    database = stamps[0].path
    # The alias DuckDB itself would choose, so a query may say `shop.main.events` for shop.duckdb.
    stem = Path(database).name.split(".")[0]
    alias = "source" if stem.lower() in {"", "temp", "system", "main", "lorestream_scratch"} else stem
    with reading(database), _unlocked(database):
        con.execute(f"ATTACH {quote(database)} AS {identifier(alias)} (READ_ONLY, TYPE duckdb)")
    con.execute(f"USE {identifier(alias)}")
    if source.table is not None:
        name = f"table {source.table} of {database}"
        relation, is_stored = _table(con, alias, source.table, database)
        if is_stored and all(stamp in skip for stamp in stamps):
            return
    else:
        assert source.query is not None
        name = f"`query` on {database}"
        with reading(name):
            statements = con.extract_statements(source.query)
        if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
            raise InputError(f"`query` must be one SELECT statement, got {source.query!r}.")
        # The line break ends a comment that the query may close with.
        relation = f"({source.query.strip().rstrip(';')}\n)"
    with reading(name):
        columns = _columns(con, relation)
    yield Part(name, relation, columns, False, tuple(stamps))


@contextmanager
def _unlocked(database: str) -> Iterator[None]:
    """Turns DuckDB's complaint that another process holds `database` into an error that says so."""
    try:
        yield
    except duckdb.IOException as error:
        # DuckDB has no type of its own for this.
        if "Could not set lock" not in str(error):
            raise
        raise InputError(
            f"{database} is held open for writing by another process: {_first_line(error)}. "
            "Nothing was stored. Close it there, or let `database` name a copy."
        ) from error


def _table(con: duckdb.DuckDBPyConnection, alias: str, table: str, database: str) -> tuple[str, bool]:
    """The quoted name of `table` (`name` or `schema.name`), and whether its rows are stored in the database's file.

    A view may read other files. Raises InputError listing the tables there are.
    """
    found = con.execute(
        "SELECT table_schema, table_name, table_type FROM information_schema.tables "
        "WHERE table_catalog = ? ORDER BY ALL",
        [alias],
    ).fetchall()
    for schema, name, kind in found:
        if table == f"{schema}.{name}" or (schema == "main" and table == name):
            return f"{identifier(alias)}.{identifier(schema)}.{identifier(name)}", kind == "BASE TABLE"
    listing = ", ".join(name if schema == "main" else f"{schema}.{name}" for schema, name, _ in found) or "none"
    raise InputError(f"{database} has no table `{table}`; its tables and views: {listing}.")


def _compression(path: str) -> str:
    return "gzip" if path.lower().endswith(".gz") else "none"


def _csv_header(path: str, expected: Collection[str]) -> tuple[str, list[str]]:
    """Delimiter and column names of a CSV file: the delimiter under which most expected names appear."""
    headers: dict[str, list[str]] = {}
    try:
        for delimiter in DELIMITERS:
            with _open_text(path) as stream:
                headers[delimiter] = next(csv.reader(stream, delimiter=delimiter), [])
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(
            f"{path} cannot be read as CSV: {error}. Save it as UTF-8 text with a header line, or as Parquet."
        ) from error
    delimiter = max(DELIMITERS, key=lambda d: (len(set(headers[d]) & set(expected)), len(headers[d])))
    names = headers[delimiter]
    if any("\ufffd" in name for name in names):
        raise InputError(f"{path}: its header {delimiter.join(names)!r} is not UTF-8. Save the file as UTF-8.")
    if not any(name.strip() for name in names):
        raise InputError(f"{path} is empty. A CSV input starts with a line of column names.")
    if not set(names) & set(expected) and any(is_number(name) for name in names):
        raise InputError(
            f"{path} has no header: its first line is {delimiter.join(names)!r}. "
            f"Put a line of column names first; expected are {', '.join(expected)}."
        )
    # Spreadsheets and pandas leave the name of an index column blank; it is no attribute of anything.
    names = [name if name.strip() else f"__blank_{place}" for place, name in enumerate(names)]
    folded = [name.casefold() for name in names]
    twice = sorted({name for name in names if folded.count(name.casefold()) > 1})
    if twice:
        raise InputError(f"{path} names a column twice: {', '.join(twice)}. Rename one of them.")
    return delimiter, names


def _open_text(path: str) -> TextIO:
    # Text is decoded in blocks: bytes that are not UTF-8 further down belong to their line, not to the header.
    if _compression(path) == "gzip":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline=""))
    return open(path, encoding="utf-8-sig", errors="replace", newline="")


def is_number(text: str) -> bool:
    """Whether `text` reads as a number; NaN and the infinities do."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def bad_lines(con: duckdb.DuckDBPyConnection, part: Part) -> list[BadLine]:
    """The lines of a CSV part that did not parse when it was read, once each, in order.

    Raises InputError where a quote swallowed whole lines: what was lost cannot be counted then.
    """
    if not part.is_csv:
        return []
    rows = con.execute(
        "SELECT line, min(csv_line), min(error_message) FROM reject_errors JOIN reject_scans USING (scan_id, file_id) "
        "WHERE file_path = ? GROUP BY line ORDER BY line",
        [part.name],
    ).fetchall()
    lines = [BadLine(line, text or "", error) for line, text, error in rows]
    for bad in lines:
        if "\n" in bad.text.strip() or "\r" in bad.text.strip():
            raise InputError(
                f'{part.name}, line {bad.line}: a `"` opens a quoted field that does not end where it should, so the '
                f"lines after it cannot be told apart: {bad.text[:80]!r}. Mend that line (a quote inside a quoted "
                "field is doubled). Nothing was stored."
            )
    return lines


def check_unchanged(part: Part, source: SourceConfig) -> None:
    """Raises InputError where a file of `part` changed since it was opened: its fingerprint would be a lie."""
    for stamp in part.files:
        if _stamp(Path(stamp.path), source) != stamp:
            raise InputError(f"{stamp.path} changed while it was being read. Nothing was stored; run again.")


def source_column(part: Part, source: SourceConfig, table: str, name: str) -> str | None:
    """The name in the source of the contract's column `name`, or None where it is absent.

    Raises InputError where the config maps it to a column that is not there.
    """
    mapped = source.columns.get(name)
    if mapped is None:
        return name if name in part.columns else None
    if mapped not in part.columns:
        raise InputError(
            f"[inputs.{table}.columns] maps `{name}` to {mapped!r}, but {part.name} has no such column; "
            f"it has {', '.join(part.columns)}. Correct the name."
        )
    return mapped


def required_column(part: Part, source: SourceConfig, table: str, name: str) -> str:
    """Like `source_column`. Raises MissingColumn where it is absent."""
    column = source_column(part, source, table, name)
    if column is None:
        raise MissingColumn(table, name, list(part.columns), part.name, part.is_csv)
    return column
