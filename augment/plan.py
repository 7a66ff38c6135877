"""Planning: which calls are missing, as rows of `requests`. Nothing here talks to an engine.

A partition is asked about once per (prompt version, engine id) and kind; an item once per version of its catalogue
row; a group once per generation. Hence after appending events the plan holds the newly sealed partitions and the new
items, and nothing else. What builds on answers (LIBER's cascade) is planned in waves: a wave holds every user's next
step, and stands on what is stored, so an interrupted one goes on.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from augment.repertoire import KnowledgeConfig
from augment.scope import EngineIdentity, Scope, Sources, register
from prompts.render import EmptyPrompt, HistoryLine, Kind, PromptWriter, Span
from warehouse import keys
from warehouse.errors import ConfigError
from warehouse.labels import LabelRule
from warehouse.schemas import REQUESTS
from warehouse.sql import connect
from warehouse.store import TableWriter

_BATCH_ROWS = 8192

Row = dict[str, object]


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
class Wishes:
    """What to ask: kinds and cascade, what counts as positive feedback, and the attribute (of a list, its first value)
    whose items draft from each other's texts."""

    knowledge: KnowledgeConfig
    positive: LabelRule
    item_group: str | None = None


def plan_requests(
    sources: Sources,
    writer: PromptWriter,
    engine: EngineIdentity,
    wishes: Wishes,
    scope: Scope,
    now: datetime,
    out_file: Path,
    *,
    first_wave: bool = True,
) -> PlanReport:
    """The calls that are missing and can be asked now, written as rows of `requests` to `out_file`, if there are any.

    Shifts are left for the waves after the first: before that, summaries that they compare may still be unanswered.
    Raises ConfigError where prompts show feedback, and `action` is a part of what is positive: partitions hold values.
    """
    check_feedback(writer, wishes.positive)
    with connect() as con:
        register(con, sources, engine.engine_id, {kind: writer.version(kind) for kind in Kind}, scope)
        titles = dict(con.execute("SELECT item_id, title FROM latest_items").fetchall())
        planner = _Planner(writer, engine, now, titles, wishes)
        cascade = wishes.knowledge.cascade
        queries: dict[Kind, tuple[str, Callable[[pa.RecordBatch], pa.Table]]] = {
            Kind.GROUP_LIKES: (_missing_groups(Kind.GROUP_LIKES), planner.groups),
            Kind.GROUP_DISLIKES: (_missing_groups(Kind.GROUP_DISLIKES), planner.groups),
            Kind.GROUP_ITEMS: (_missing_groups(Kind.GROUP_ITEMS), planner.groups),
            Kind.USER_SUMMARY: (_NEXT_PARTITIONS if cascade == "summary" else _MISSING_PARTITIONS, planner.summaries),
            Kind.USER_SHIFT: (_MISSING_SHIFTS, planner.shifts),
            Kind.ITEM_FACTS: (_MISSING_ITEMS, planner.items),
        }
        with TableWriter(out_file, REQUESTS) as out:
            for kind in wishes.knowledge.kinds:
                if kind is Kind.USER_SHIFT and first_wave:
                    continue
                query, rows = queries[kind]
                for batch in _batches(con, query):
                    out.write(rows(batch))
        if not planner.planned:
            out_file.unlink()
        return PlanReport(planner.planned, planner.untitled_partitions, planner.untitled_items)


def later_calls(
    sources: Sources, engine: EngineIdentity, versions: Mapping[str, str], wishes: Wishes, scope: Scope
) -> dict[str, int]:
    """Calls by kind that cannot be planned before others are answered, if all answers are usable."""
    if not wishes.knowledge.waves:
        return {}
    with connect() as con:
        register(con, sources, engine.engine_id, versions, scope)
        shifts, summaries = con.execute(
            """
            SELECT count(*) FILTER (WHERE partition_no > 0 AND NOT EXISTS (
                       FROM asked a WHERE a.kind = 'user_shift' AND a.entity_id = p.user_id
                           AND a.partition_no = p.partition_no)),
                   count(*) FILTER (WHERE NOT EXISTS (
                       FROM asked a WHERE a.kind = 'user_summary' AND a.entity_id = p.user_id
                           AND a.partition_no = p.partition_no))
            FROM scoped_partitions p
            """
        ).fetchall()[0]
    found = {str(Kind.USER_SHIFT): shifts}
    return found | ({str(Kind.USER_SUMMARY): summaries} if wishes.knowledge.cascade == "summary" else {})


def check_feedback(writer: PromptWriter, positive: LabelRule) -> None:
    """Raise ConfigError where prompts tell liked from disliked events by a rule that partitions cannot answer."""
    if writer.options.feedback != "values" and any(c.column == "action" for c in positive.comparisons):
        raise ConfigError(
            f'prompts.feedback = "{writer.options.feedback}" shows what was liked, and labels.positive = '
            f"{positive.text!r} goes by `action`, which partitions do not keep. Use a rule over `value`, or "
            'prompts.feedback = "values".'
        )


_MISSING_PARTITIONS = """
    SELECT p.user_id, p.partition_no, p.opened_at, p.sealed_at, p.previous_end, p.items, p."values", p.digest,
           u.attributes, NULL::VARCHAR AS previous, m.group_id
    FROM scoped_partitions p
    ANTI JOIN (SELECT entity_id AS user_id, partition_no FROM asked WHERE kind = 'user_summary')
        USING (user_id, partition_no)
    LEFT JOIN latest_users u USING (user_id)
    LEFT JOIN (SELECT entity_id AS user_id, group_id FROM members WHERE kind = 'group_likes') m USING (user_id)
    ORDER BY p.partition_no, p.user_id
"""

# Of every user the first partition that was not asked about, once all before it are answered: its prompt shows the
# newest usable summary before it.
_NEXT_PARTITIONS = f"""
    WITH missing AS ({_MISSING_PARTITIONS}),
    next AS (
        SELECT * FROM missing QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY partition_no) = 1
    ),
    waiting AS (
        SELECT DISTINCT entity_id AS user_id FROM asked ANTI JOIN answers USING (request_key)
        WHERE kind = 'user_summary'
    )
    SELECT n.* REPLACE (s.text AS previous)
    FROM (FROM next ANTI JOIN waiting USING (user_id)) n
    ASOF LEFT JOIN summaries s ON n.user_id = s.user_id AND n.partition_no > s.partition_no
    ORDER BY n.partition_no, n.user_id
"""

# A user's second usable summary is the first that a shift can be asked for.
_MISSING_SHIFTS = """
    SELECT p.user_id, p.partition_no, p.opened_at, p.sealed_at, p.previous_end, p.digest,
           s.text AS current, b.text AS previous, m.group_id
    FROM scoped_partitions p
    JOIN summaries s USING (user_id, partition_no)
    ASOF JOIN summaries b ON p.user_id = b.user_id AND p.partition_no > b.partition_no
    LEFT JOIN (SELECT entity_id AS user_id, group_id FROM members WHERE kind = 'group_likes') m
        ON m.user_id = p.user_id
    WHERE NOT EXISTS (
        FROM asked a
        WHERE a.kind = 'user_shift' AND a.entity_id = p.user_id AND a.partition_no = p.partition_no
    )
    ORDER BY p.partition_no, p.user_id
"""

_MISSING_ITEMS = """
    SELECT i.item_id, i.title, i.attributes, i.valid_from, i.digest
    FROM scoped_items i
    ANTI JOIN (SELECT entity_id AS item_id, source_digest AS digest FROM asked WHERE kind = 'item_facts')
        USING (item_id, digest)
    ORDER BY i.item_id
"""


def _missing_groups(kind: Kind) -> str:
    return f"""
        SELECT kind, group_id, size, named, as_of FROM scoped_groups
        WHERE kind = '{kind}' AND group_id NOT IN (SELECT entity_id FROM asked WHERE kind = '{kind}')
        ORDER BY group_id
    """


def _batches(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    yield from con.sql(query).to_arrow_reader(_BATCH_ROWS)


class _Planner:
    """Turns what is missing into rows of `requests`, counting what it leaves out."""

    def __init__(
        self,
        writer: PromptWriter,
        engine: EngineIdentity,
        now: datetime,
        titles: Mapping[str, str],
        wishes: Wishes,
    ) -> None:
        self._writer, self._engine, self._now, self._titles, self._wishes = writer, engine, now, titles, wishes
        self._engine_id = engine.engine_id
        self._versions = {kind: writer.version(kind) for kind in Kind}
        self.planned: dict[str, int] = {}
        self.untitled_partitions = 0
        self.untitled_items = 0

    def summaries(self, batch: pa.RecordBatch) -> pa.Table:
        liked = self._liked(batch)
        rows = []
        for row, likes in zip(batch.to_pylist(), liked, strict=True):
            history = [
                HistoryLine(self._titles[item], value, like)
                for item, value, like in zip(row["items"], row["values"], likes, strict=True)
                if item in self._titles
            ]
            try:
                prompt = self._writer.user_summary(
                    history, orjson.loads(row["attributes"] or "{}"), _span(row), row["previous"]
                )
            except EmptyPrompt:
                self.untitled_partitions += 1
                continue
            rows.append(self._of_user(Kind.USER_SUMMARY, row, prompt))
        return pa.Table.from_pylist(rows, REQUESTS)

    def shifts(self, batch: pa.RecordBatch) -> pa.Table:
        rows = [
            self._of_user(Kind.USER_SHIFT, row, self._writer.user_shift(row["previous"], row["current"], _span(row)))
            for row in batch.to_pylist()
        ]
        return pa.Table.from_pylist(rows, REQUESTS)

    def items(self, batch: pa.RecordBatch) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            attributes = orjson.loads(row["attributes"] or "{}")
            try:
                prompt = self._writer.item_facts(row["title"], attributes)
            except EmptyPrompt:
                self.untitled_items += 1
                continue
            item = (Kind.ITEM_FACTS, row["item_id"], None, row["valid_from"], prompt, row["digest"])
            rows.append(self._row(*item, group=self._pool_of(attributes)))
        return pa.Table.from_pylist(rows, REQUESTS)

    def groups(self, batch: pa.RecordBatch) -> pa.Table:
        rows = []
        for row in batch.to_pylist():
            titles = [self._titles[item] for item in row["named"] if item in self._titles]
            try:
                prompt = self._writer.group(Kind(row["kind"]), titles, row["size"])
            except EmptyPrompt:
                continue
            digest = keys.digest([row["group_id"], row["named"]])
            rows.append(self._row(Kind(row["kind"]), row["group_id"], None, row["as_of"], prompt, digest))
        return pa.Table.from_pylist(rows, REQUESTS)

    def _liked(self, batch: pa.RecordBatch) -> list[list[bool | None]]:
        """By row and event, whether it was positive feedback; None where prompts do not ask."""
        values = batch.column("values")
        if self._writer.options.feedback == "values":
            return [[None] * len(row) for row in values]
        flat = pa.table({"value": values.flatten()})
        mask = self._wishes.positive.arrow_mask(flat).to_pylist()
        ends = np.cumsum([len(row) for row in values])
        return [mask[end - len(row) : end] for row, end in zip(values, ends, strict=True)]

    def _pool_of(self, attributes: Mapping[str, object]) -> str | None:
        """The group of texts that an item's text is like."""
        value = attributes.get(self._wishes.item_group) if self._wishes.item_group else None
        if isinstance(value, list):
            value = value[0] if value else None
        return None if value is None else f"{Kind.ITEM_FACTS}/{value}"

    def _of_user(self, kind: Kind, row: Mapping[str, object], prompt: str) -> Row:
        # Users who like the same are likely to get like answers (a collaborative cluster).
        group = None if row["group_id"] is None else f"{kind}/{row['group_id']}"
        return self._row(
            kind, row["user_id"], row["partition_no"], row["sealed_at"], prompt, row["digest"], group=group
        )

    def _row(
        self,
        kind: Kind,
        entity: object,
        partition_no: object,
        as_of: object,
        prompt: str,
        source_digest: object,
        *,
        group: str | None = None,
    ) -> Row:
        self.planned[str(kind)] = self.planned.get(str(kind), 0) + 1
        return {
            "request_key": self._engine.request_key(prompt),
            "kind": str(kind),
            "entity_id": entity,
            "partition_no": partition_no,
            "as_of": as_of,
            "prompt": prompt,
            "group": group,
            "prompt_version": self._versions[kind],
            "engine_id": self._engine_id,
            "source_digest": source_digest,
            "created_at": self._now,
        }


def _span(row: Mapping[str, datetime]) -> Span:
    return Span(row["opened_at"], row["sealed_at"], row["previous_end"])
