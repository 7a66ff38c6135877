"""Which entities a publication has to look at: those that files speak of which the one before had not seen.

A night adds some percent of the texts; without this every vector would be read and made again to find that it is there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from adapters.knowledge import GROUP_KINDS, Stored
from warehouse.keys import digest
from warehouse.schemas import GROUP_MEMBERS, ITEM_VERSIONS, PARTITIONS, REQUESTS
from warehouse.sql import connect, parquet_view

_KEYS = pa.schema([("request_key", pa.string())])


def inputs_of(stored: Stored, adapter_version: str) -> dict[str, object]:
    """What a publication is made from, as JSON: by table the names of its files, and `made_by` for all else."""
    named = [stored.engine_id, stored.encoder_id, dict(stored.prompt_versions), sorted(stored.kinds), adapter_version]
    return {"made_by": digest(named), "files": {table: _names(paths) for table, paths in _tables(stored).items()}}


def touched_since(stored: Stored, now: Mapping[str, object], before: Mapping[str, object]) -> pa.Table | None:
    """Column entity_id: who may have other rows by the inputs `now` than by those `before`; None for everybody.

    That is everybody once anything but new files sets the two apart: another configuration or adapter, files that are
    gone, a new clustering, or a new text about a group, which may stand for any of its members.
    """
    seen, tables = before.get("files"), _tables(stored)
    if now["made_by"] != before.get("made_by") or not isinstance(seen, dict) or seen.keys() != tables.keys():
        return None
    if any(not set(seen[table]) <= set(_names(paths)) for table, paths in tables.items()):
        return None
    new = {
        table: [path for path, name in zip(paths, _names(paths), strict=True) if name not in set(seen[table])]
        for table, paths in tables.items()
    }
    if new["groups"]:
        return None
    with connect() as con:
        parquet_view(con, "requests", stored.requests, REQUESTS)
        for table, schema in (
            ("requests", REQUESTS),
            ("knowledge", _KEYS),
            ("embeddings", _KEYS),
            ("partitions", PARTITIONS),
            ("items", ITEM_VERSIONS),
            ("group_members", GROUP_MEMBERS),
        ):
            parquet_view(con, f"new_{table}", new[table], schema)
        con.execute(
            "CREATE TEMP TABLE asked AS SELECT DISTINCT kind, entity_id FROM ("
            "SELECT kind, entity_id FROM requests SEMI JOIN (SELECT request_key FROM new_knowledge "
            "UNION ALL SELECT request_key FROM new_embeddings) USING (request_key) "
            "UNION ALL SELECT kind, entity_id FROM new_requests)"
        )
        groups = [kind for kinds in GROUP_KINDS.values() for kind in kinds if kind in stored.kinds]
        if con.execute("FROM asked WHERE list_contains($groups, kind) LIMIT 1", {"groups": groups}).fetchall():
            return None
        touched: pa.Table = con.sql(
            "SELECT entity_id FROM asked UNION SELECT user_id FROM new_partitions UNION SELECT item_id FROM new_items "
            "UNION SELECT entity_id FROM new_group_members"
        ).to_arrow_table()
    return touched


def _tables(stored: Stored) -> dict[str, Sequence[Path]]:
    return {
        "requests": stored.requests,
        "knowledge": stored.knowledge,
        "embeddings": stored.embeddings,
        "partitions": stored.partitions,
        "items": stored.items,
        "groups": stored.groups,
        "group_members": stored.group_members,
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """Names within a table: files are immutable, so a name stands for what is in it."""
    return [path.name for path in paths]
