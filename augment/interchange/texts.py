"""Texts about entities that somebody else's LLM wrote, from a Parquet or CSV file with a row per text.

Columns: entity (or one kind for the whole file), an id (`id`, `item_id`, `user_id` or `group_id`), text, model, and
optionally prompt and created (a timestamp or seconds since 1970).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from augment.interchange.faults import FaultReason, ImportFault
from augment.interchange.rows import column_names, id_of, read_rows, time_of
from prompts.render import Kind
from warehouse.errors import InputError, UsageError


class EntityKind(StrEnum):
    """What a text may be about."""

    ITEM = "item"
    USER = "user"
    ITEM_GROUP = "item_group"
    USER_LIKES_GROUP = "user_likes_group"
    USER_DISLIKES_GROUP = "user_dislikes_group"

    @property
    def knowledge(self) -> Kind:
        """The kind of knowledge that such a text is."""
        return _KNOWLEDGE[self]


_KNOWLEDGE = {
    EntityKind.ITEM: Kind.ITEM_FACTS,
    EntityKind.USER: Kind.USER_SUMMARY,
    EntityKind.ITEM_GROUP: Kind.GROUP_ITEMS,
    EntityKind.USER_LIKES_GROUP: Kind.GROUP_LIKES,
    EntityKind.USER_DISLIKES_GROUP: Kind.GROUP_DISLIKES,
}

# Of REKI's own files a row is of a group, and is named by whom the group is of.
GROUP_NAMES: Mapping[str, EntityKind] = {
    "item": EntityKind.ITEM_GROUP,
    "user_positive": EntityKind.USER_LIKES_GROUP,
    "user_negative": EntityKind.USER_DISLIKES_GROUP,
    EntityKind.ITEM_GROUP: EntityKind.ITEM_GROUP,
    EntityKind.USER_LIKES_GROUP: EntityKind.USER_LIKES_GROUP,
    EntityKind.USER_DISLIKES_GROUP: EntityKind.USER_DISLIKES_GROUP,
}

# Columns that may hold the id, and what a row with it can be about.
_ID_COLUMNS: Mapping[str, Mapping[str, EntityKind]] = {
    "id": {
        "user_positive": EntityKind.USER_LIKES_GROUP,
        "user_negative": EntityKind.USER_DISLIKES_GROUP,
        **{kind: kind for kind in EntityKind},
    },
    "item_id": {EntityKind.ITEM: EntityKind.ITEM},
    "user_id": {EntityKind.USER: EntityKind.USER},
    "group_id": GROUP_NAMES,
}


@dataclass(frozen=True)
class ImportedText:
    """One text, as far as it can be checked without a warehouse."""

    row: int
    entity: EntityKind
    entity_id: str
    text: str
    model: str
    prompt: str | None = None
    created: datetime | None = None


def read_texts(path: Path, entity: str | None = None) -> Iterator[ImportedText | ImportFault]:
    """The texts of a file in its order, each checked, and a fault for every row that cannot be one.

    `entity` says what all rows are about, where no column does. Of several texts for one entity the first that is
    sound stays. Raises InputError for a file that cannot be read or lacks a column, UsageError for an `entity` that
    cannot be right.
    """
    found = column_names(path)
    id_column = _id_column(path, found)
    names = _ID_COLUMNS[id_column]
    if entity is not None and "entity" in found:
        raise UsageError(f"{path} has a column `entity` that says what its rows are about. Leave --entity out.")
    if entity is not None and entity not in names:
        raise UsageError(
            f"--entity {entity} cannot be what `{id_column}` of {path} names. Choose one of {', '.join(names)}."
        )
    needed = [id_column, "text", "model", *(["entity"] if entity is None else [])]
    if missing := [name for name in needed if name not in found]:
        hint = " (or say what all rows are about by --entity)" if "entity" in missing else ""
        raise InputError(
            f"{path} has no column {', '.join(f'`{name}`' for name in missing)}{hint}; it has {', '.join(found)}."
        )
    columns = [name for name in (*needed, "prompt", "created") if name in found]
    seen: set[tuple[EntityKind, str]] = set()
    for number, row in enumerate(read_rows(path, columns), start=1):
        checked = _check(number, {"entity": entity, **row}, id_column, names)
        if isinstance(checked, ImportedText):
            if (checked.entity, checked.entity_id) in seen:
                checked = ImportFault(number, FaultReason.DUPLICATE_ID, f"{checked.entity} {checked.entity_id}")
            else:
                seen.add((checked.entity, checked.entity_id))
        yield checked


def _id_column(path: Path, found: list[str]) -> str:
    candidates = [name for name in _ID_COLUMNS if name in found]
    if "id" in candidates:
        return "id"
    if len(candidates) != 1:
        raise InputError(
            f"{path} has {', '.join(candidates) or 'no id column'}, where exactly one of {', '.join(_ID_COLUMNS)} "
            f"should be; its columns are {', '.join(found)}. Rename the column that says whom a text is about to `id`."
        )
    return candidates[0]


def _check(
    number: int, row: Mapping[str, object], id_column: str, names: Mapping[str, EntityKind]
) -> ImportedText | ImportFault:
    named, text, model, prompt = row["entity"], row["text"], row["model"], row.get("prompt")
    if not isinstance(named, str) or named not in names:
        return ImportFault(number, FaultReason.UNKNOWN_ENTITY, repr(named))
    try:
        entity_id, created = id_of(row[id_column]), time_of(row.get("created"))
    except (TypeError, ValueError) as error:
        return ImportFault(number, FaultReason.WRONG_TYPE, str(error))
    if entity_id is None:
        return ImportFault(number, FaultReason.MISSING_ID, f"`{id_column}` is empty")
    for name, value in (("text", text), ("model", model), ("prompt", prompt)):
        if value is not None and not isinstance(value, str):
            return ImportFault(number, FaultReason.WRONG_TYPE, f"`{name}` of {entity_id} is {type(value).__name__}")
    if not isinstance(text, str) or not text.strip():
        return ImportFault(number, FaultReason.EMPTY_TEXT, f"{named} {entity_id}")
    if not isinstance(model, str) or not model.strip():
        return ImportFault(number, FaultReason.MISSING_MODEL, f"{named} {entity_id}")
    shown = prompt if isinstance(prompt, str) and prompt.strip() else None
    return ImportedText(number, names[named], entity_id, text, model.strip(), shown, created)
