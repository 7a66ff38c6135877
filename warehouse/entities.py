"""Items and users from any source into versions: a new row only where an item's or user's own facts changed."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from warehouse.erased import Erased, Side
from warehouse.errors import InputError, TooManyRejected, WrongType
from warehouse.inputs import (
    INTEGERS,
    NOTHING,
    REJECTED,
    IngestReport,
    Reason,
    advice,
    example,
    id_sql,
    in_range_sql,
    is_text,
    row_json_sql,
    timestamp_sql,
    unparseable,
)
from warehouse.keys import canonical_json, digest, item_digest
from warehouse.schemas import ALWAYS, ITEM_VERSIONS, USER_VERSIONS
from warehouse.sources import (
    Part,
    SourceConfig,
    SourceFile,
    check_unchanged,
    identifier,
    parts,
    reading,
    required_column,
    scratch_database,
    source_column,
)
from warehouse.sql import quote

_ROWS_PER_BATCH = 50_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TemplateTokenInItem(InputError):
    """An item's text holds a token of a chat template, with which it could pose as another speaker in a prompt."""

    def __init__(self, item_id: str, column: str, token: str, source: str) -> None:
        self.item_id, self.column, self.token, self.source = item_id, column, token, source
        super().__init__(
            f"Item {item_id!r} from {source} has the chat-template token {token!r} in `{column}`. Nothing was stored. "
            'Clean the value, or set inputs.on_template_tokens = "strip": prompts are then rendered without such '
            "tokens, and the catalogue is stored as it is."
        )


@dataclass(frozen=True)
class EntityIngest:
    """New or changed versions (ITEM_VERSIONS or USER_VERSIONS), what was kept aside (REJECTED), and the counts."""

    versions: pa.Table
    rejected: pa.Table
    report: IngestReport


@dataclass(frozen=True)
class _Row:
    """One row of a part, converted. `raw` is the row as JSON text for the rejected table."""

    entity_id: str | None
    title: str | None
    available_at: datetime | None
    attributes: dict[str, object]
    digest: str
    fault: Reason | None
    raw: str


@dataclass(frozen=True)
class _Change:
    """A row that makes a new version, and the newest stored version of the same id."""

    part: Part
    entity_id: str
    row: _Row
    before: Mapping[str, object] | None


@dataclass
class _Tally:
    """Counts of one read, and the rows it keeps aside."""

    table: str
    read: int = 0
    duplicates: int = 0
    known: int = 0
    template_tokens: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)
    files: list[SourceFile] = field(default_factory=list)

    def reject(self, part: Part, reason: Reason, row: str) -> None:
        self.rejected.append({"table": self.table, "source": part.name, "reason": reason.value, "row": row})

    def close(self, versions: pa.Table, max_rejected_fraction: float, source: SourceConfig) -> EntityIngest:
        """The result. Raises TooManyRejected where the share of rejected rows passes the limit."""
        reasons: dict[str, int] = {}
        for row in self.rejected:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
        broken = {reason: count for reason, count in reasons.items() if reason != Reason.ERASED}
        if sum(broken.values()) > max_rejected_fraction * self.read:
            available = source.columns.get("available_at", "available_at")
            raise TooManyRejected(
                self.table,
                sum(broken.values()),
                self.read,
                max_rejected_fraction,
                broken,
                # From the last to the first: the first row of a reason stays.
                {row["reason"]: example(row["row"], available) for row in reversed(self.rejected)},
                advice(source, self.table, reasons),
            )
        report = IngestReport(
            table=self.table,
            read=self.read,
            accepted=versions.num_rows,
            duplicates=self.duplicates,
            known=self.known,
            rejected=len(self.rejected),
            reasons=reasons,
            sources=tuple(self.files),
            template_tokens=self.template_tokens,
        )
        return EntityIngest(versions, pa.Table.from_pylist(self.rejected, schema=REJECTED), report)


def ingest_items(
    source: SourceConfig,
    base: Path,
    known: pa.Table | None,
    now: datetime,
    find_template_token: Callable[[str], str | None],
    on_template_tokens: Literal["refuse", "strip"] = "refuse",
    max_rejected_fraction: float = 0.05,
    skip: Collection[SourceFile] = (),
    erased: Erased | None = None,
) -> EntityIngest:
    """The versions of items that `source` adds to `known` (ITEM_VERSIONS, or None); nothing is written.

    An item's first version holds from `available_at`, or always; a later one from now at the earliest, because the
    catalogue does not say when the change happened. A row that repeats an item of the same read is counted where it is
    equal, and rejected where it differs. A changed `available_at` alone makes no version. Of an `erased` item nothing
    is kept but that there was one.

    `find_template_token` returns the first chat-template token of a text, or None; only new versions are searched.
    Raises TemplateTokenInItem (with "refuse"), MissingColumn, WrongType, TooManyRejected or InputError.
    """
    tally = _Tally("items")
    versions: list[dict[str, object]] = []
    rows = _rows(source, base, tally, skip, "item_id", "title", erased or Erased())
    for change in _changes(rows, tally, _latest(known, "item_id", ["valid_from", "created_at"])):
        row = change.row
        found = _template_token(row, find_template_token)
        if found is not None and on_template_tokens == "refuse":
            raise TemplateTokenInItem(change.entity_id, *found, change.part.name)
        tally.template_tokens += found is not None
        versions.append(
            {
                "item_id": change.entity_id,
                "title": row.title,
                "attributes": canonical_json(row.attributes).decode(),
                "available_at": row.available_at,
                "digest": row.digest,
                "valid_from": _valid_from(row.available_at, change.before, now),
                "created_at": now,
            }
        )
    return tally.close(pa.Table.from_pylist(versions, schema=ITEM_VERSIONS), max_rejected_fraction, source)


def ingest_users(
    source: SourceConfig,
    base: Path,
    known: pa.Table | None,
    now: datetime,
    max_rejected_fraction: float = 0.05,
    skip: Collection[SourceFile] = (),
    erased: Erased | None = None,
) -> EntityIngest:
    """The versions of users that `source` adds to `known` (USER_VERSIONS, or None); nothing is written.

    Repeated and erased users are treated like such items. Raises MissingColumn, WrongType, TooManyRejected or
    InputError.
    """
    tally = _Tally("users")
    rows = _rows(source, base, tally, skip, "user_id", None, erased or Erased())
    versions = [
        {
            "user_id": change.entity_id,
            "attributes": canonical_json(change.row.attributes).decode(),
            "digest": change.row.digest,
            "created_at": now,
        }
        for change in _changes(rows, tally, _latest(known, "user_id", ["created_at"]))
    ]
    return tally.close(pa.Table.from_pylist(versions, schema=USER_VERSIONS), max_rejected_fraction, source)


def _changes(
    rows: Iterable[tuple[Part, _Row]], tally: _Tally, latest: Mapping[str, Mapping[str, object]]
) -> Iterator[_Change]:
    """The rows that are new or differ from `latest`, the newest stored version by id; the rest goes to the tally."""
    seen: dict[str, str] = {}
    for part, row in rows:
        if row.fault is not None or row.entity_id is None:
            tally.reject(part, row.fault or Reason.MISSING_ID, row.raw)
        elif row.entity_id in seen:
            if seen[row.entity_id] == row.digest:
                tally.duplicates += 1
            else:
                tally.reject(part, Reason.DUPLICATE_ID, row.raw)
        else:
            seen[row.entity_id] = row.digest
            before = latest.get(row.entity_id)
            if before is not None and before["digest"] == row.digest:
                tally.known += 1
            else:
                yield _Change(part, row.entity_id, row, before)


def _latest(known: pa.Table | None, key: str, order: Sequence[str]) -> dict[str, dict[str, object]]:
    """Digest and `valid_from` of the newest version of every entity in `known`."""
    if known is None:
        return {}
    columns = [name for name in (key, "digest", "valid_from") if name in known.column_names]
    # A stable sort: of versions that tie, the one stored later stays the later one.
    places = known.append_column("_place", pa.array(range(known.num_rows), pa.int64()))
    newest = places.sort_by([(name, "ascending") for name in (*order, "_place")]).select(columns)
    return {row[key]: row for row in newest.to_pylist()}


def _valid_from(available_at: datetime | None, before: Mapping[str, object] | None, now: datetime) -> datetime:
    if before is None:
        return available_at or ALWAYS
    earlier = before["valid_from"]
    assert isinstance(earlier, datetime)
    # Never before the version it replaces, or the older one would win the as-of join.
    return max(available_at or now, now, earlier)


def _template_token(row: _Row, find: Callable[[str], str | None]) -> tuple[str, str] | None:
    """Column and token of the first text of an item that holds one."""
    for column, value in {"title": row.title, **row.attributes}.items():
        for text in value if isinstance(value, list) else [value]:
            token = find(text) if isinstance(text, str) else None
            if token is not None:
                return column, token
    return None


def _rows(
    source: SourceConfig,
    base: Path,
    tally: _Tally,
    skip: Collection[SourceFile],
    key: str,
    title: str | None,
    erased: Erased,
) -> Iterator[tuple[Part, _Row]]:
    """Every row of `source`, converted; lines that do not parse, and who was erased, go straight to the tally."""
    table = tally.table
    side: Side = "item" if title else "user"
    names = [name for name in (key, title, "available_at" if title else None) if name]
    expected = [*(source.columns.get(name, name) for name in names), *source.columns.values()]
    with scratch_database() as con:
        for part in parts(con, source, base, expected, skip):
            for row in _part_rows(con, part, source, table, key, title):
                tally.read += 1
                if row.entity_id is not None and erased.holds(side, row.entity_id):
                    tally.reject(part, Reason.ERASED, NOTHING)
                else:
                    yield part, row
            for reason, line in unparseable(con, part, erased):
                tally.read += 1
                tally.reject(part, reason, line)
            check_unchanged(part, source)
            tally.files += part.files


def _part_rows(
    con: duckdb.DuckDBPyConnection, part: Part, source: SourceConfig, table: str, key: str, title: str | None
) -> Iterator[_Row]:
    taken = {key: required_column(part, source, table, key)}
    id_cell = id_sql(part, table, key, taken[key])
    title_cell, available_cell = "NULL::VARCHAR", "NULL::BIGINT"
    faults = f"WHEN {id_cell} IS NULL THEN {quote(Reason.MISSING_ID)}"
    if title is not None:
        taken[title] = required_column(part, source, table, title)
        title_cell = _title_sql(part, table, title, taken[title])
        faults += f" WHEN {title_cell} IS NULL THEN {quote(Reason.MISSING_TITLE)}"
        available = source_column(part, source, table, "available_at")
        if available is not None:
            taken["available_at"] = available
            available_cell = timestamp_sql(part, table, "available_at", available, source.timestamp_unit)
            faults += (
                f" WHEN trim({identifier(available)}::VARCHAR) <> '' AND ({available_cell}) IS NULL "
                f"THEN {quote(Reason.BAD_TIMESTAMP)} "
                f"WHEN NOT {in_range_sql(f'({available_cell})')} THEN {quote(Reason.TIMESTAMP_OUT_OF_RANGE)}"
            )
    attributes = _attribute_columns(part, source, table, taken)
    cells = [id_cell, title_cell, available_cell, f"CASE {faults} END", row_json_sql(taken.values())]
    listing = ", ".join(f"{sql} AS c{place}" for place, sql in enumerate([*cells, *attributes.values()]))
    with reading(part.name):
        for batch in con.sql(f"SELECT {listing} FROM {part.relation}").to_arrow_reader(_ROWS_PER_BATCH):
            columns = [column.to_pylist() for column in batch.columns]
            for entity_id, text, micros, fault, raw, *values in zip(*columns, strict=True):
                present = _present(dict(zip(attributes, values, strict=True)))
                yield _Row(
                    entity_id=entity_id,
                    title=text,
                    available_at=None if micros is None or fault else _EPOCH + timedelta(microseconds=micros),
                    attributes=present,
                    digest=digest({"attributes": present}) if title is None else item_digest(text or "", present),
                    fault=None if fault is None else Reason(fault),
                    raw=raw,
                )


def _title_sql(part: Part, table: str, name: str, column: str) -> str:
    """SQL of a title, null where blank. Raises WrongType unless the column holds strings."""
    if not is_text(part.columns[column]):
        raise WrongType(table, name, "a string", part.columns[column], part.name)
    text = f"{identifier(column)}::VARCHAR"
    return f"CASE WHEN trim({text}) <> '' THEN {text} END"


def _attribute_columns(part: Part, source: SourceConfig, table: str, taken: Mapping[str, str]) -> dict[str, str]:
    """Attribute name -> SQL of its value, by name. Raises WrongType for what is no string, number or list of those."""
    mapped = {name: column for name in source.columns if (column := source_column(part, source, table, name))}
    plain = {name: name for name in part.columns if name not in {*mapped.values(), *taken.values(), *mapped, *taken}}
    wanted = {**plain, **{name: column for name, column in mapped.items() if name not in taken}}
    return {
        name: _attribute_sql(part, table, name, column)
        for name, column in sorted(wanted.items())
        if not name.startswith("__blank_")
    }


def _attribute_sql(part: Part, table: str, name: str, column: str) -> str:
    kind, raw = part.columns[column], identifier(column)
    scalar = re.sub(r"\[\d*\]$", "", kind)
    shape = "[]" if scalar != kind else ""
    if is_text(scalar) or scalar == "DATE" or scalar.startswith("TIMESTAMP"):
        return f"{raw}::VARCHAR{shape}"
    if scalar == "FLOAT":
        # By way of text: the float32 nearest to 0.1 should read 0.1, not 0.10000000149011612.
        return f"{raw}::VARCHAR{shape}::DOUBLE{shape}"
    if scalar == "DOUBLE" or scalar == "BOOLEAN" or (scalar in INTEGERS and "HUGE" not in scalar):
        return f"{raw}::{scalar}{shape}"
    if scalar.startswith("DECIMAL") or scalar in INTEGERS:
        return f"{raw}::DOUBLE{shape}"
    raise WrongType(table, name, "a string, a number or a list of them", kind, part.name)


def _present(values: Mapping[str, object]) -> dict[str, object]:
    """`values` without nulls and numbers that JSON has no word for, inside lists too."""
    cleaned: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, list):
            cleaned[name] = [entry for entry in value if _is_present(entry)]
        elif _is_present(value):
            cleaned[name] = value
    return cleaned


def _is_present(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
