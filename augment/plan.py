"""Planning: which calls are missing, as rows of `requests`. Nothing here talks to an engine.

A partition is asked about once per (prompt version, engine id); an item once per version of its catalogue row. Hence
after appending events the plan holds the newly sealed partitions and the new items, and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from augment.engine.base import Engine, Request
from prompts.render import EmptyPrompt, HistoryLine, Kind, PromptWriter
from warehouse import keys
from warehouse.schemas import ITEM_VERSIONS, PARTITIONS, REQUESTS, USER_VERSIONS
from warehouse.sql import connect, parquet_view
from warehouse.store import TableWriter

_BATCH_ROWS = 8192


@dataclass(frozen=True)
class Scope:
    """Which part of the warehouse to plan for: a sample of users, an interval [start, end) of event time, or all.

    A part holds the partitions of these users that were sealed in this interval, and the items in them.
    """

    limit_users: int | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True)
class Sources:
    """The stored tables that a plan reads, as lists of Parquet files (any may be empty)."""

    partitions: Sequence[Path]
    items: Sequence[Path]
    users: Sequence[Path]
    requests: Sequence[Path]


@dataclass(frozen=True)
class PlanReport:
    """What was planned: new calls per kind, and what could not be asked about."""

    planned: dict[str, int] = field(default_factory=dict)
    untitled_partitions: int = 0
    untitled_items: int = 0

    @property
    def calls(self) -> int:
        return sum(self.planned.values())


@dataclass(frozen=True)
class EngineIdentity:
    """What of an engine enters a request key."""

    model: str
    revision: str
    sampling: Mapping[str, object]
    verification: str

    @classmethod
    def of(cls, engine: Engine) -> "EngineIdentity":
        return cls(engine.model, engine.revision, engine.sampling, engine.verification)

    @property
    def engine_id(self) -> str:
        return keys.engine_id(self.model, self.revision, self.sampling, self.verification)

    def request_key(self, prompt: str) -> str:
        return keys.request_key(prompt, self.model, self.revision, self.sampling, self.verification)


def plan_requests(
    sources: Sources,
    writer: PromptWriter,
    engine: EngineIdentity,
    scope: Scope,
    now: datetime,
    out_file: Path,
    item_group: str | None = None,
) -> PlanReport:
    """The missing calls, written as rows of `requests` to `out_file`; the file is not made when there are none.

    `item_group` is the attribute (of a list, its first value) whose items draft from each other's texts.
    """
    with connect() as con:
        _register(con, sources, engine.engine_id, {kind: writer.version(kind) for kind in Kind}, scope)
        titles = dict(con.execute("SELECT item_id, title FROM latest_items").fetchall())
        planner = _Planner(writer, engine, now, titles, item_group)
        with TableWriter(out_file, REQUESTS) as out:
            for batch in _batches(con, _MISSING_PARTITIONS):
                out.write(planner.user_summaries(batch))
            for batch in _batches(con, _MISSING_ITEMS):
                out.write(planner.item_facts(batch))
        if not planner.planned:
            out_file.unlink()
        return PlanReport(planner.planned, planner.untitled_partitions, planner.untitled_items)


def pending_requests(
    sources: Sources, knowledge: Sequence[Path], engine: EngineIdentity, versions: Mapping[str, str], scope: Scope
) -> tuple[pa.Table, dict[str, str]]:
    """Planned calls without a stored text that a plan of the same scope would make now, and each key's prompt version.

    So what an interrupted run left behind waits until its prompts (`versions` by kind), engine and scope are asked for
    again. Columns request_key, prompt, group, kind; one row per key: entities with equal prompts share one call. Users
    come before items, earlier partitions before later ones.
    """
    with connect() as con:
        _register(con, sources, engine.engine_id, versions, scope)
        parquet_view(con, "knowledge", knowledge, pa.schema([("request_key", pa.string())]))
        table: pa.Table = con.sql(_PENDING).to_arrow_table()
    found = dict(zip(table.column("request_key").to_pylist(), table.column("prompt_version").to_pylist(), strict=True))
    return table.drop_columns(["prompt_version"]), found


def as_requests(pending: pa.Table) -> Iterator[Request]:
    """The rows of `pending_requests` as an engine takes them, read batch by batch."""
    for batch in pending.to_batches(max_chunksize=_BATCH_ROWS):
        for key, prompt, group in zip(
            *(batch.column(c).to_pylist() for c in ("request_key", "prompt", "group")), strict=True
        ):
            yield Request(key, prompt, group)


_MISSING_PARTITIONS = """
    SELECT p.user_id, p.partition_no, p.sealed_at, p.items, p."values", p.digest, u.attributes
    FROM scoped_partitions p
    ANTI JOIN (SELECT entity_id AS user_id, partition_no FROM asked WHERE kind = 'user_summary')
        USING (user_id, partition_no)
    LEFT JOIN latest_users u USING (user_id)
    ORDER BY p.partition_no, p.user_id
"""

_MISSING_ITEMS = """
    SELECT i.item_id, i.title, i.attributes, i.valid_from, i.digest
    FROM scoped_items i
    ANTI JOIN (SELECT entity_id AS item_id, source_digest AS digest FROM asked WHERE kind = 'item_facts')
        USING (item_id, digest)
    ORDER BY i.item_id
"""

_PENDING = """
    SELECT request_key, any_value(prompt) AS prompt, any_value("group") AS "group", any_value(kind) AS kind,
           any_value(prompt_version) AS prompt_version
    FROM (
        SELECT a.* FROM asked a SEMI JOIN scoped_partitions p
            ON a.kind = 'user_summary' AND a.entity_id = p.user_id AND a.partition_no = p.partition_no
        UNION ALL
        SELECT a.* FROM asked a SEMI JOIN scoped_items i
            ON a.kind = 'item_facts' AND a.entity_id = i.item_id AND a.source_digest = i.digest
    ) ANTI JOIN knowledge USING (request_key)
    GROUP BY request_key
    ORDER BY kind DESC, min(partition_no) NULLS LAST, request_key
"""


def _register(
    con: duckdb.DuckDBPyConnection, sources: Sources, engine_id: str, versions: Mapping[str, str], scope: Scope
) -> None:
    """Make `asked`, `scoped_partitions` and `scoped_items`, on which planning and pending calls agree."""
    parquet_view(con, "partitions", sources.partitions, PARTITIONS)
    parquet_view(con, "items", sources.items, ITEM_VERSIONS)
    parquet_view(con, "users", sources.users, USER_VERSIONS)
    parquet_view(con, "requests", sources.requests, REQUESTS)
    current = " OR ".join(f"(kind = '{kind}' AND prompt_version = '{version}')" for kind, version in versions.items())
    con.execute(f"CREATE TEMP VIEW asked AS SELECT * FROM requests WHERE engine_id = '{engine_id}' AND ({current})")
    con.execute(
        "CREATE TEMP TABLE latest_items AS SELECT * FROM items "
        "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY created_at DESC, valid_from DESC) = 1"
    )
    con.execute(
        "CREATE TEMP TABLE latest_users AS SELECT user_id, attributes FROM users "
        "QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY created_at DESC) = 1"
    )
    in_scope = ["true"]
    if scope.limit_users is not None:
        everyone = [u for (u,) in con.execute("SELECT DISTINCT user_id FROM partitions").fetchall()]
        sample = pa.table({"user_id": pa.array(keys.sample_entities(everyone, scope.limit_users), pa.string())})
        con.register("sample", sample)
        in_scope.append("user_id IN (SELECT user_id FROM sample)")
    if scope.start is not None:
        in_scope.append(f"sealed_at >= TIMESTAMPTZ '{scope.start.isoformat()}'")
    if scope.end is not None:
        in_scope.append(f"sealed_at < TIMESTAMPTZ '{scope.end.isoformat()}'")
    con.execute(f"CREATE TEMP VIEW scoped_partitions AS SELECT * FROM partitions WHERE {' AND '.join(in_scope)}")
    touched = "true"
    # Of a part of the users or of the time, only the items that it saw: else a week would ask about all the catalogue.
    if scope != Scope():
        touched = "item_id IN (SELECT unnest(items) FROM scoped_partitions)"
    until = f"valid_from < TIMESTAMPTZ '{scope.end.isoformat()}'" if scope.end is not None else "true"
    con.execute(f"CREATE TEMP VIEW scoped_items AS SELECT * FROM latest_items WHERE {touched} AND {until}")


def _batches(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    yield from con.sql(query).to_arrow_reader(_BATCH_ROWS)


class _Planner:
    """Turns missing partitions and items into rows of `requests`, counting what it leaves out."""

    def __init__(
        self,
        writer: PromptWriter,
        engine: EngineIdentity,
        now: datetime,
        titles: Mapping[str, str],
        item_group: str | None,
    ) -> None:
        self._writer, self._engine, self._now, self._titles = writer, engine, now, titles
        self._item_group = item_group
        self._engine_id = engine.engine_id
        self._versions = {kind: writer.version(kind) for kind in Kind}
        self.planned: dict[str, int] = {}
        self.untitled_partitions = 0
        self.untitled_items = 0

    def user_summaries(self, batch: pa.RecordBatch) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            history = [
                HistoryLine(self._titles[item], value)
                for item, value in zip(row["items"], row["values"], strict=True)
                if item in self._titles
            ]
            try:
                prompt = self._writer.user_summary(history, orjson.loads(row["attributes"] or "{}"))
            except EmptyPrompt:
                self.untitled_partitions += 1
                continue
            rows.append(
                self._row(
                    Kind.USER_SUMMARY, row["user_id"], row["partition_no"], row["sealed_at"], prompt, row["digest"]
                )
            )
        return pa.Table.from_pylist(rows, REQUESTS)

    def item_facts(self, batch: pa.RecordBatch) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            attributes = orjson.loads(row["attributes"] or "{}")
            try:
                prompt = self._writer.item_facts(row["title"], attributes)
            except EmptyPrompt:
                self.untitled_items += 1
                continue
            item = (Kind.ITEM_FACTS, row["item_id"], None, row["valid_from"], prompt, row["digest"])
            rows.append({**self._row(*item), "group": self._group_of(attributes)})
        return pa.Table.from_pylist(rows, REQUESTS)

    def _group_of(self, attributes: Mapping[str, object]) -> str | None:
        value = attributes.get(self._item_group) if self._item_group else None
        if isinstance(value, list):
            value = value[0] if value else None
        return None if value is None else f"{Kind.ITEM_FACTS}/{value}"

    def _row(
        self, kind: Kind, entity: str, partition_no: int | None, as_of: datetime, prompt: str, source_digest: str
    ) -> dict[str, object]:
        self.planned[str(kind)] = self.planned.get(str(kind), 0) + 1
        return {
            "request_key": self._engine.request_key(prompt),
            "kind": str(kind),
            "entity_id": entity,
            "partition_no": partition_no,
            "as_of": as_of,
            "prompt": prompt,
            "group": None,
            "prompt_version": self._versions[kind],
            "engine_id": self._engine_id,
            "source_digest": source_digest,
            "created_at": self._now,
        }
