"""Groups that somebody else's clustering made: who is in which, from a Parquet or CSV file with a row per member.

Columns: entity (item, user_positive, user_negative, as in REKI's files, or our own names of groups), id, group_id.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from augment.interchange.faults import FaultReason, ImportFault
from augment.interchange.rows import column_names, id_of, read_rows
from augment.interchange.texts import GROUP_NAMES
from warehouse.errors import InputError
from warehouse.schemas import GROUP_MEMBERS, GROUPS

_COLUMNS = ("entity", "id", "group_id")


@dataclass(frozen=True)
class ImportedGroups:
    """Rows of `groups` and `group_members`, and the rows of the file that could not be members.

    The groups have no parent, name no items and have no centroid: nothing is known of the clustering but its result. So
    nobody is asked about them and no later entity is assigned to them; they stand for what texts about them say.
    """

    groups: pa.Table
    members: pa.Table
    faults: tuple[ImportFault, ...]


def imported_group_id(kind: str, generation: int, group: str) -> str:
    """The id of an imported group: unique over kinds and generations, and of the form of our own groups' ids."""
    return f"{kind}/g{generation}/{group}"


def read_members(path: Path, generation: int, as_of: datetime, now: datetime) -> ImportedGroups:
    """The groups in a file as generation `generation`; an entity is in one group of a kind, the first that names it.

    `as_of` is the end of the events that the clustering saw, which only the caller knows: nothing of these groups is
    joined to an event before it. Raises InputError for a file that cannot be read or lacks a column.
    """
    found = column_names(path)
    if missing := [name for name in _COLUMNS if name not in found]:
        raise InputError(
            f"{path} has no column {', '.join(f'`{name}`' for name in missing)}; it has {', '.join(found)}. A file of "
            f"members has {', '.join(_COLUMNS)}."
        )
    members: dict[tuple[str, str], str] = {}
    faults: list[ImportFault] = []
    for number, row in enumerate(read_rows(path, _COLUMNS), start=1):
        entity = row["entity"]
        if not isinstance(entity, str) or entity not in GROUP_NAMES:
            faults.append(ImportFault(number, FaultReason.UNKNOWN_ENTITY, repr(entity)))
            continue
        try:
            member, group = id_of(row["id"]), id_of(row["group_id"])
        except TypeError as error:
            faults.append(ImportFault(number, FaultReason.WRONG_TYPE, str(error)))
            continue
        kind = str(GROUP_NAMES[entity].knowledge)
        if member is None:
            faults.append(ImportFault(number, FaultReason.MISSING_ID, "`id` is empty"))
        elif group is None:
            faults.append(ImportFault(number, FaultReason.MISSING_GROUP, f"{entity} {member}"))
        elif (kind, member) in members:
            faults.append(ImportFault(number, FaultReason.DUPLICATE_ID, f"{entity} {member}"))
        else:
            members[kind, member] = imported_group_id(kind, generation, group)
    stamps = {"generation": generation, "created_at": now}
    sizes = Counter((kind, group) for (kind, _), group in members.items())
    group_rows = [
        {**stamps, "kind": kind, "group_id": group, "size": size, "named": [], "centroid": [], "as_of": as_of}
        for (kind, group), size in sorted(sizes.items())
    ]
    member_rows = [
        {**stamps, "kind": kind, "entity_id": member, "group_id": group, "joined_at": as_of}
        for (kind, member), group in sorted(members.items())
    ]
    return ImportedGroups(
        pa.Table.from_pylist(group_rows, GROUPS), pa.Table.from_pylist(member_rows, GROUP_MEMBERS), tuple(faults)
    )
