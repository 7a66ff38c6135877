"""Behaviours from any source into the contract: checked, counted, de-duplicated, written once.

`entities` does the same for items and users. Rows that break the contract are kept aside with a `Reason`.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Literal

import duckdb
import orjson
import pyarrow as pa

from warehouse.erased import Erased
from warehouse.errors import TooManyRejected, WrongType
from warehouse.schemas import ALWAYS, BEHAVIOURS, DEFAULT_ACTION, TIMESTAMP
from warehouse.sources import (
    Part,
    SourceConfig,
    SourceFile,
    bad_lines,
    check_unchanged,
    enough_memory,
    identifier,
    is_number,
    parts,
    reading,
    required_column,
    scratch_database,
    source_column,
)
from warehouse.sql import quote, reading_stored
from warehouse.store import FileRef, TableWriter


class Reason(StrEnum):
    """Why a row was kept aside."""

    MISSING_ID = "missing_id"
    BAD_TIMESTAMP = "bad_timestamp"
    # Readable, but before 1700 or after 2262: mostly milliseconds read as seconds.
    TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"
    # Later than the run's clock allows (`inputs.max_future_days`).
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    BAD_VALUE = "bad_value"
    MISSING_TITLE = "missing_title"
    DUPLICATE_ID = "duplicate_id"
    UNPARSEABLE_ROW = "unparseable_row"
    # Breaks no contract: its user or item was erased. Nothing of the row is kept, and no limit counts it.
    ERASED = "erased"


# `row` is a JSON object of the contract's columns as they stand in the source, as text; or of `line`, `text` and
# `error` for a line of CSV that does not parse; or empty, where what it says was erased.
REJECTED = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class IngestReport:
    """What a read did: `read == accepted + duplicates + known + rejected`.

    `accepted` rows are new, `duplicates` repeat a row of the same read, `known` rows were stored before. `sources` are
    the files that were read; hand them back as `skip` and they are not read again until they change. `file` and
    `rejected_file` are None where nothing was written.
    """

    table: str
    read: int
    accepted: int
    duplicates: int
    known: int
    rejected: int
    reasons: dict[str, int]
    sources: tuple[SourceFile, ...]
    ignored_columns: tuple[str, ...] = ()
    file: FileRef | None = None
    rejected_file: FileRef | None = None
    # Items whose text holds a chat-template token, stored because `on_template_tokens` is "strip".
    template_tokens: int = 0


INTEGERS = frozenset(
    sign + name for sign in ("", "U") for name in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
)
_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Exclusive at the start: a row at ALWAYS itself could see no fact that holds always. The end is pandas' last full year.
_FIRST_US = round((ALWAYS - _EPOCH).total_seconds()) * 1_000_000 + 1
_LAST_US = round((datetime(2262, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds()) * 1_000_000
_BEYOND_US = 10**16
# In the connection's own catalogue, whatever database a source made current.
_STAGED = "lorestream_scratch.main.staged"
_FRESH = "lorestream_scratch.main.fresh"
_ERASED = "lorestream_scratch.main.erased"
NOTHING = "{}"
_ROWS_PER_BATCH = 500_000
_EXAMPLE_CHARS = 80


def is_text(kind: str) -> bool:
    """Whether a DuckDB type holds text; the type of a column without any value counts as text."""
    return kind in {"VARCHAR", "UUID", '"NULL"'} or kind.startswith("ENUM")


def id_sql(part: Part, table: str, name: str, column: str) -> str:
    """SQL of an id as text, null where blank. Raises WrongType unless the column holds strings or whole numbers."""
    kind = part.columns[column]
    if not (is_text(kind) or kind in INTEGERS or (kind.startswith("DECIMAL") and kind.endswith(",0)"))):
        raise WrongType(table, name, "a string or a whole number", kind, part.name)
    text = f"{identifier(column)}::VARCHAR"
    return f"CASE WHEN trim({text}) <> '' THEN {text} END"


def timestamp_sql(part: Part, table: str, name: str, column: str, unit: Literal["s", "ms", "us"]) -> str:
    """SQL of a time as microseconds since 1970 in UTC, null where it cannot be read.

    Times without a zone are UTC; whole numbers count `unit`; text is ISO 8601 or a whole number. Raises WrongType for
    any other type.
    """
    kind, raw = part.columns[column], identifier(column)
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        zoned = "TIMESTAMPTZ" if "TZ" in kind or "TIME ZONE" in kind else "TIMESTAMP"
        cast = f"TRY_CAST({raw} AS {zoned})"
        return f"CASE WHEN isfinite({cast}) THEN epoch_us({cast}) END"
    if kind in INTEGERS:
        return _counted_sql(raw, unit)
    if is_text(kind):
        text = f"trim({raw}::VARCHAR)"
        # DuckDB would read the words `epoch` and `infinity` as times.
        return (
            f"CASE WHEN regexp_full_match({text}, '[+-]?[0-9]+') "
            f"THEN {_counted_sql(text, unit)} "
            f"WHEN regexp_matches({text}, '^[0-9]{{4}}-') THEN TRY(epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))) END"
        )
    raise WrongType(table, name, "a timestamp, a date, a whole number or ISO text", kind, part.name)


def _counted_sql(number: str, unit: Literal["s", "ms", "us"]) -> str:
    """SQL of a count of `unit` as microseconds; one too large for them becomes a time out of range, not unreadable."""
    count, limit = f"TRY_CAST({number} AS BIGINT)", _BEYOND_US // _UNIT_US[unit]
    return (
        f"CASE WHEN {count} BETWEEN {-limit} AND {limit} THEN {count} * {_UNIT_US[unit]} "
        f"WHEN {count} IS NOT NULL THEN {_BEYOND_US} END"
    )


def in_range_sql(micros: str) -> str:
    """SQL that tells whether microseconds since 1970 are a time that every reader of the tables can hold."""
    return f"{micros} BETWEEN {_FIRST_US} AND {_LAST_US}"


def row_json_sql(columns: Iterable[str]) -> str:
    """SQL of a row as JSON text. Values are text, because JSON has no NaN and no infinity."""
    pairs = ", ".join(f"{quote(column)}: {identifier(column)}::VARCHAR" for column in columns)
    return f"to_json({{{pairs}}})::VARCHAR"


def example(row: str, column: str | None) -> str:
    """A rejected row (`row` of REJECTED) as a short text, what stands in `column` first."""
    cells: dict[str, object] = orjson.loads(row)
    text = ", ".join(f"{name} = {cells[name]!r}" for name in sorted(cells, key=lambda name: name != column))
    return text if len(text) <= _EXAMPLE_CHARS else f"{text[:_EXAMPLE_CHARS]}..."


def advice(source: SourceConfig, table: str, reasons: Collection[str]) -> str:
    """What to look at where rows were rejected for these `reasons`; "" where the reason says it all."""
    if not {Reason.TIMESTAMP_OUT_OF_RANGE, Reason.TIMESTAMP_IN_FUTURE} & set(reasons):
        return ""
    return (
        f"Whole numbers are read in the unit `inputs.{table}.timestamp_unit` = {source.timestamp_unit!r}; "
        "if they count something else, set it to 's', 'ms' or 'us'."
    )


def _value_sql(part: Part, column: str) -> str:
    """SQL of a finite float32, null for anything else. Raises WrongType unless the column holds numbers."""
    kind = part.columns[column]
    is_number = kind in INTEGERS or kind in {"FLOAT", "DOUBLE", '"NULL"'} or kind.startswith("DECIMAL")
    if not (is_number or part.is_csv):
        raise WrongType("behaviours", "value", "a number", kind, part.name)
    # By way of DOUBLE: a number too large for float32 becomes null there, text alone would become infinity.
    cast = f"TRY_CAST(TRY_CAST({identifier(column)} AS DOUBLE) AS FLOAT)"
    return f"CASE WHEN isfinite({cast}) THEN {cast} END"


def _action_sql(part: Part, column: str) -> str:
    """SQL of an action as text, the default where it is null or blank. Raises WrongType unless it is text."""
    kind = part.columns[column]
    if not is_text(kind):
        raise WrongType("behaviours", "action", "a string", kind, part.name)
    text = f"{identifier(column)}::VARCHAR"
    return f"CASE WHEN trim({text}) <> '' THEN {text} ELSE {quote(DEFAULT_ACTION)} END"


def ingest_behaviours(
    source: SourceConfig,
    base: Path,
    known: Sequence[Path],
    out_file: Path,
    rejected_file: Path,
    max_rejected_fraction: float = 0.05,
    skip: Collection[SourceFile] = (),
    memory_limit: str = "2GB",
    threads: int | None = None,
    latest: datetime | None = None,
    erased: Erased | None = None,
) -> IngestReport:
    """What became of the rows of `source`; new ones stand in `out_file` (BEHAVIOURS, in order of arrival) afterwards.

    Arrival is the order of files by path, then of rows. A row is new when no row of this read before it and none in
    `known` (Parquet files of accepted behaviours) equals it in all five columns. Rows that break the contract, or lie
    after `latest` (None: the end of time), stand in `rejected_file` (REJECTED); of those about somebody `erased` only
    that there was one. A file is written whole or not at all, and not at all when it would be empty. DuckDB works out
    of core within `memory_limit`.

    Raises MissingColumn, WrongType, TooManyRejected or InputError, and writes nothing then.
    """
    with scratch_database(memory_limit, threads) as con:
        con.execute(
            f"CREATE TABLE {_STAGED} (user_id VARCHAR, item_id VARCHAR, ts BIGINT, value FLOAT, action VARCHAR, "
            "reason VARCHAR, source VARCHAR, row VARCHAR)"
        )
        erased = erased or Erased()
        erased.register(con, _ERASED)
        files: list[SourceFile] = []
        ignored: dict[str, None] = {}
        expected = [source.columns.get(name, name) for name in BEHAVIOURS.names]
        for part in parts(con, source, base, expected, skip):
            ignored |= dict.fromkeys(_stage(con, part, source, latest, erased))
            check_unchanged(part, source)
            files += part.files

        reasons = dict(
            con.execute(
                f"SELECT reason, count(*) FROM {_STAGED} WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 1"
            ).fetchall()
        )
        read, rejected = _count(con, _STAGED), sum(reasons.values())
        broken = {reason: count for reason, count in reasons.items() if reason != Reason.ERASED}
        if sum(broken.values()) > max_rejected_fraction * read:
            _explain_text(con, source, read, reasons)
            raise TooManyRejected(
                "behaviours",
                sum(broken.values()),
                read,
                max_rejected_fraction,
                broken,
                _examples(con, source),
                advice(source, "behaviours", reasons),
            )

        with enough_memory("Removing repeated behaviours"):
            con.execute(
                f"CREATE TABLE {_FRESH} AS SELECT user_id, item_id, ts, value, action, min(rowid) AS arrival "
                f"FROM {_STAGED} WHERE reason IS NULL GROUP BY ALL"
            )
        distinct = _count(con, _FRESH)
        with ExitStack() as stack:
            new = _write(stack, out_file, BEHAVIOURS, _new_rows(con, known)) if distinct else None
            aside = _write(stack, rejected_file, REJECTED, _rejected_rows(con)) if rejected else None
    file = new.ref if new else None
    accepted = file.rows if file else 0
    return IngestReport(
        table="behaviours",
        read=read,
        accepted=accepted,
        duplicates=read - rejected - distinct,
        known=distinct - accepted,
        rejected=rejected,
        reasons=reasons,
        sources=tuple(files),
        ignored_columns=tuple(ignored),
        file=file,
        rejected_file=aside.ref if aside else None,
    )


def _stage(
    con: duckdb.DuckDBPyConnection, part: Part, source: SourceConfig, latest: datetime | None, erased: Erased
) -> list[str]:
    """Puts every row of `part` into the staging table, checked and with a reason where it fails.

    What comes back are the columns nobody asked for. Each insert keeps the order of its rows, so `rowid` is arrival.
    """
    user = required_column(part, source, "behaviours", "user_id")
    item = required_column(part, source, "behaviours", "item_id")
    ts = required_column(part, source, "behaviours", "ts")
    value = source_column(part, source, "behaviours", "value")
    action = source_column(part, source, "behaviours", "action")
    used = [column for column in (user, item, ts, value, action) if column is not None]
    cells = {
        "user_id": id_sql(part, "behaviours", "user_id", user),
        "item_id": id_sql(part, "behaviours", "item_id", item),
        "ts": timestamp_sql(part, "behaviours", "ts", ts, source.timestamp_unit),
        "value": "1.0::FLOAT" if value is None else _value_sql(part, value),
        "action": quote(DEFAULT_ACTION) if action is None else _action_sql(part, action),
    }
    # Before any other reason: those keep the row.
    reason = (
        f"CASE WHEN {erased.sql('user', '_cells.user_id', _ERASED)} OR {erased.sql('item', '_cells.item_id', _ERASED)} "
        f"THEN {quote(Reason.ERASED)} "
        f"WHEN _cells.user_id IS NULL OR _cells.item_id IS NULL THEN {quote(Reason.MISSING_ID)} "
        f"WHEN _cells.ts IS NULL THEN {quote(Reason.BAD_TIMESTAMP)} "
        f"WHEN NOT {in_range_sql('_cells.ts')} THEN {quote(Reason.TIMESTAMP_OUT_OF_RANGE)} "
        f"WHEN _cells.ts > {_LAST_US if latest is None else _micros(latest)} THEN {quote(Reason.TIMESTAMP_IN_FUTURE)} "
        f"WHEN _cells.value IS NULL THEN {quote(Reason.BAD_VALUE)} END"
    )
    struct = ", ".join(f"{name}: {sql}" for name, sql in cells.items())
    with reading(part.name):
        con.execute(
            f"INSERT INTO {_STAGED} SELECT _cells.user_id, _cells.item_id, _cells.ts, _cells.value, _cells.action, "
            f"_reason, CASE WHEN _reason IS NOT NULL THEN {quote(part.name)} END, "
            f"CASE WHEN _reason = {quote(Reason.ERASED)} THEN {quote(NOTHING)} "
            f"WHEN _reason IS NOT NULL THEN {row_json_sql(used)} END FROM (SELECT *, {reason} AS _reason "
            f"FROM (SELECT {{{struct}}} AS _cells, {_listed(used)} FROM {part.relation}))"
        )
    for reason, row in unparseable(con, part, erased):
        con.execute(f"INSERT INTO {_STAGED} (reason, source, row) VALUES (?, ?, ?)", [reason, part.name, row])
    return [column for column in part.columns if column not in used]


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _examples(con: duckdb.DuckDBPyConnection, source: SourceConfig) -> dict[str, str]:
    """The first rejected row of each reason, as text."""
    first = con.execute(
        f"SELECT reason, arg_min(row, rowid) FROM {_STAGED} WHERE reason IS NOT NULL GROUP BY reason"
    ).fetchall()
    at_fault = {
        Reason.BAD_TIMESTAMP: "ts",
        Reason.TIMESTAMP_OUT_OF_RANGE: "ts",
        Reason.TIMESTAMP_IN_FUTURE: "ts",
        Reason.BAD_VALUE: "value",
    }
    names = {reason: source.columns.get(name, name) for reason, name in at_fault.items()}
    return {reason: example(row, names.get(reason)) for reason, row in first}


def _listed(columns: Iterable[str]) -> str:
    return ", ".join(identifier(column) for column in columns)


def unparseable(con: duckdb.DuckDBPyConnection, part: Part, erased: Erased) -> list[tuple[Reason, str]]:
    """`reason` and `row` of a rejected line for every line of a CSV part that does not parse."""
    return [
        (Reason.ERASED, NOTHING)
        if erased.named_in(bad.text)
        else (
            Reason.UNPARSEABLE_ROW,
            orjson.dumps({"line": bad.line, "text": bad.text, "error": bad.error}).decode(),
        )
        for bad in bad_lines(con, part)
    ]


def _explain_text(con: duckdb.DuckDBPyConnection, source: SourceConfig, read: int, reasons: dict[str, int]) -> None:
    """Raises WrongType where not one text of a column could be read: then the column is wrong, not its rows."""
    for reason, name, expected in (
        (Reason.BAD_TIMESTAMP, "ts", "ISO 8601 or a whole number"),
        (Reason.BAD_VALUE, "value", "a number"),
    ):
        if reasons.get(reason) != read:
            continue
        column = source.columns.get(name, name)
        for origin, row in con.execute(f"SELECT source, row FROM {_STAGED} LIMIT 100").fetchall():
            text = orjson.loads(row).get(column)
            # What is a number, but none that can be stored (NaN, infinity), is no matter of the column's type.
            if text is not None and not (name == "value" and is_number(text)):
                raise WrongType("behaviours", name, expected, f"text such as {text!r} in every row", origin)


def _count(con: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _new_rows(con: duckdb.DuckDBPyConnection, known: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """The rows of the fresh table that are in no file of `known`, in order of arrival."""
    query = f"SELECT f.* FROM {_FRESH} f"
    if known:
        [(first, last)] = con.execute(f"SELECT min(ts), max(ts) FROM {_FRESH}").fetchall()
        # The bounds on `ts` let DuckDB pass over files of other days by their statistics. No column is ever null.
        listing = ", ".join(quote(str(path)) for path in known)
        query += (
            " ANTI JOIN (SELECT user_id, item_id, epoch_us(ts) AS ts, value, action "
            f"FROM read_parquet([{listing}], hive_partitioning = false) "
            f"WHERE ts >= make_timestamptz({first}) AND ts <= make_timestamptz({last})) k "
            "USING (user_id, item_id, ts, value, action)"
        )
    with reading_stored(known), enough_memory("Looking for new behaviours"):
        for batch in con.sql(f"SELECT * FROM ({query}) ORDER BY arrival").to_arrow_reader(_ROWS_PER_BATCH):
            columns = [batch.column(name) for name in BEHAVIOURS.names]
            columns[2] = columns[2].cast(TIMESTAMP)
            yield pa.record_batch(columns, schema=BEHAVIOURS)


def _rejected_rows(con: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    query = f"SELECT 'behaviours', source, reason, row FROM {_STAGED} WHERE reason IS NOT NULL ORDER BY rowid"
    for batch in con.sql(query).to_arrow_reader(_ROWS_PER_BATCH):
        yield pa.record_batch(batch.columns, schema=REJECTED)


def _write(stack: ExitStack, path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> TableWriter | None:
    """The writer that took all `batches`, or None without a row; its file takes its name when `stack` ends well."""
    writer: TableWriter | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        if writer is None:
            writer = stack.enter_context(TableWriter(path, schema))
        writer.write(batch)
    return writer
