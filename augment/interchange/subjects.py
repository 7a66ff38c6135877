"""What in the warehouse the entities of imported texts are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from augment.interchange.faults import ImportFault
from augment.interchange.members import imported_group_id
from augment.interchange.texts import EntityKind, ImportedText
from augment.scope import Sources
from warehouse import keys
from warehouse.schemas import GROUPS, ITEM_VERSIONS, PARTITIONS
from warehouse.sql import connect, parquet_view


@dataclass(frozen=True)
class Subject:
    """What a text about an entity is attached to: the entity's id in `requests`, and from when on it may be known."""

    entity_id: str
    as_of: datetime
    source_digest: str
    partition_no: int | None = None


Subjects = Mapping[tuple[EntityKind, str], Subject]


def find_subjects(
    texts: Sequence[ImportedText | ImportFault], sources: Sources
) -> dict[tuple[EntityKind, str], Subject]:
    """What the entities of `texts` are in the warehouse; absent ones are left out.

    An item is its newest version, a user the newest sealed partition. A group is of the newest generation of its kind,
    named by the id under which it was imported or by its whole id.
    """
    wanted = {(text.entity, text.entity_id) for text in texts if isinstance(text, ImportedText)}
    found: dict[tuple[EntityKind, str], Subject] = {}
    with connect() as con:
        parquet_view(con, "items", sources.items, ITEM_VERSIONS)
        parquet_view(con, "partitions", sources.partitions, PARTITIONS)
        parquet_view(con, "groups", sources.groups, GROUPS)
        for entity, query in ((EntityKind.ITEM, _NEWEST_ITEMS), (EntityKind.USER, _NEWEST_PARTITIONS)):
            ids = [entity_id for kind, entity_id in wanted if kind is entity]
            con.register("wanted", pa.table({"id": pa.array(ids, pa.string())}))
            for row in con.sql(query).to_arrow_table().to_pylist():
                found[entity, row["entity_id"]] = Subject(**row)
        groups = con.sql(_NEWEST_GROUPS).to_arrow_table().to_pylist()
    by_kind = {str(kind.knowledge): kind for kind in EntityKind}
    for row in groups:
        entity, group = by_kind[row["kind"]], row["group_id"]
        # As the planner names what a group's call is about.
        subject = Subject(group, row["as_of"], keys.digest([group, row["named"]]))
        short = group.removeprefix(imported_group_id(row["kind"], row["generation"], ""))
        found |= {(entity, name): subject for name in (group, short) if (entity, name) in wanted}
    return found


_NEWEST_ITEMS = """
    SELECT item_id AS entity_id, valid_from AS as_of, digest AS source_digest
    FROM items SEMI JOIN wanted ON item_id = id
    QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY created_at DESC, valid_from DESC) = 1
"""

_NEWEST_PARTITIONS = """
    SELECT user_id AS entity_id, sealed_at AS as_of, digest AS source_digest, partition_no
    FROM partitions SEMI JOIN wanted ON user_id = id
    QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY partition_no DESC) = 1
"""

_NEWEST_GROUPS = """
    SELECT kind, generation, group_id, named, as_of FROM groups
    SEMI JOIN (SELECT kind, max(generation) AS generation FROM groups GROUP BY kind) USING (kind, generation)
"""
