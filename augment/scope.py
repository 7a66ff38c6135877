"""What planning and pending calls agree on: the part of the warehouse meant, and what was asked and answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa

from augment.engine.base import Engine
from warehouse import keys
from warehouse.answers import IMPORTED, answers_view
from warehouse.schemas import GROUP_MEMBERS, GROUPS, ITEM_VERSIONS, PARTITIONS, REQUESTS, USER_VERSIONS
from warehouse.sql import parquet_view, quote


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
    knowledge: Sequence[Path] = ()
    groups: Sequence[Path] = ()
    group_members: Sequence[Path] = ()


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


def register(
    con: duckdb.DuckDBPyConnection, sources: Sources, engine_id: str, versions: Mapping[str, str], scope: Scope
) -> None:
    """Make the views that plans and pending calls are queries over.

    asked             requests of this engine and these prompt `versions` (by kind), and those of usable imported texts:
                      for one that is no use, the engine is asked
    answers           one row per answered key: text and status of its best attempt
    summaries         the usable summaries: user_id, partition_no, text
    scoped_partitions partitions in scope, with `previous_end`, when the user's partition before ended
    scoped_items      newest item versions in scope
    scoped_groups     groups of the newest generation of their kind that are asked about
    latest_items, latest_users, members (of the newest generation)
    """
    parquet_view(con, "partitions", sources.partitions, PARTITIONS)
    parquet_view(con, "items", sources.items, ITEM_VERSIONS)
    parquet_view(con, "users", sources.users, USER_VERSIONS)
    parquet_view(con, "requests", sources.requests, REQUESTS)
    parquet_view(con, "groups", sources.groups, GROUPS)
    parquet_view(con, "group_members", sources.group_members, GROUP_MEMBERS)
    answers_view(con, sources.knowledge)
    current = " OR ".join(
        f"(kind = {quote(kind)} AND prompt_version = {quote(version)})" for kind, version in versions.items()
    )
    con.execute(
        f"CREATE TEMP VIEW asked AS SELECT * FROM requests WHERE engine_id = {quote(engine_id)} AND ({current}) "
        f"OR (starts_with(engine_id, {quote(IMPORTED)}) "
        "AND request_key IN (SELECT request_key FROM answers WHERE status = 'ok'))"
    )
    con.execute(
        "CREATE TEMP VIEW summaries AS SELECT a.entity_id AS user_id, a.partition_no, any_value(k.text) AS text "
        "FROM asked a JOIN answers k USING (request_key) WHERE a.kind = 'user_summary' AND k.status = 'ok' GROUP BY ALL"
    )
    con.execute(
        "CREATE TEMP TABLE latest_items AS SELECT * FROM items "
        "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY created_at DESC, valid_from DESC) = 1"
    )
    con.execute(
        "CREATE TEMP TABLE latest_users AS SELECT user_id, attributes FROM users "
        "QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY created_at DESC) = 1"
    )
    _register_scope(con, scope)
    _register_groups(con, scope)


def _register_scope(con: duckdb.DuckDBPyConnection, scope: Scope) -> None:
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
    con.execute(
        f"""
        CREATE TEMP VIEW scoped_partitions AS SELECT * FROM (
            SELECT *, lag(sealed_at) OVER (PARTITION BY user_id ORDER BY partition_no) AS previous_end FROM partitions
        ) WHERE {" AND ".join(in_scope)}
        """
    )
    touched = "true"
    # Of a part of the users or of the time, only the items that it saw: else a week would ask about all the catalogue.
    if scope != Scope():
        touched = "item_id IN (SELECT unnest(items) FROM scoped_partitions)"
    until = f"valid_from < TIMESTAMPTZ '{scope.end.isoformat()}'" if scope.end is not None else "true"
    con.execute(f"CREATE TEMP VIEW scoped_items AS SELECT * FROM latest_items WHERE {touched} AND {until}")


def _register_groups(con: duckdb.DuckDBPyConnection, scope: Scope) -> None:
    # Of each kind: an import may hold groups of one kind only.
    for view, table in (("newest_groups", "groups"), ("members", "group_members")):
        con.execute(
            f"CREATE TEMP VIEW {view} AS SELECT * FROM {table} "
            "SEMI JOIN (SELECT kind, max(generation) AS generation FROM groups GROUP BY kind) USING (kind, generation)"
        )
    # Of a part of the warehouse, only groups with somebody in it.
    concerned = "true"
    if scope != Scope():
        concerned = """group_id IN (
            SELECT group_id FROM members WHERE kind = 'group_items' AND entity_id IN (SELECT item_id FROM scoped_items)
            UNION ALL
            SELECT group_id FROM members
            WHERE kind <> 'group_items' AND entity_id IN (SELECT user_id FROM scoped_partitions))"""
    con.execute(
        f"""
        CREATE TEMP VIEW scoped_groups AS SELECT * FROM newest_groups
        WHERE {concerned} AND len(named) > 0
            AND group_id NOT IN (SELECT parent_id FROM groups WHERE parent_id IS NOT NULL)
        """
    )
