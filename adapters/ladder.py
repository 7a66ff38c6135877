"""The cold-start ladder: whose knowledge stands in for an entity that has none of its own.

own     the entity's own texts, as far as they are usable
group   the text of its group; where that is unusable, the mean over the nearest larger group that has usable texts
global  the mean over all groups of the clustering, for who is in no group or where only that is left
none    nothing is known

A rung holds from a moment on: own knowledge from its partition's end or its item's release, a group's from the end of
the events that its clustering saw, or from when a later entity joined. So a row never knows what came after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from warehouse.keys import digest
from warehouse.schemas import TIMESTAMP, Rung

# `status` of rows that no text stands behind.
MISSING = "missing"
OK = "ok"
# `partition_no` of rows that do not come from a partition.
NO_PARTITION = -1

_ROWS = pa.schema(
    [
        ("entity_id", pa.string()),
        ("partition_no", pa.int32()),
        ("valid_from", TIMESTAMP),
        ("request_key", pa.string()),
        ("source_digest", pa.string()),
        ("prompt_version", pa.string()),
        ("status", pa.string()),
        ("model", pa.string()),
        ("rung", pa.string()),
        ("texts_digest", pa.string()),
    ]
)


@dataclass(frozen=True)
class GroupText:
    """What a group stands for: a vector [d], the rung it counts as, and where it comes from."""

    vector: np.ndarray
    rung: Rung
    texts_digest: str
    request_key: str | None = None
    prompt_version: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class GroupTexts:
    """By leaf what it stands for; by generation from when on it holds, and what stands for who is in no group."""

    leaves: Mapping[str, GroupText]
    anybody: Mapping[int, GroupText]
    as_of: Mapping[int, datetime]


@dataclass(frozen=True)
class Membership:
    """Members of one kind of group (entity_id, group_id, generation, joined_at, in order of the first and third), and
    the groups' texts."""

    members: pa.Table
    texts: GroupTexts


@dataclass(frozen=True)
class Climbed:
    """Rows that the ladder adds, with their vectors [n, d].

    Where `own_row` is not -1, the entity's own row of that number holds at that instant already.
    """

    rows: pa.Table
    vectors: np.ndarray
    has_vector: np.ndarray
    own_row: np.ndarray


def group_vectors(tree: pa.Table, texts: pa.Table, vectors: np.ndarray, has_vector: np.ndarray) -> GroupTexts:
    """What every leaf of `tree` (group_id, parent_id, generation, as_of) stands for.

    `texts` are answered calls about groups (entity_id is the group), with `vectors` [n, d]. A leaf without a usable
    text stands for the mean over the leaves of the nearest group above it that has some; the one above all counts as
    global.
    """
    parents = dict(zip(tree.column("group_id").to_pylist(), tree.column("parent_id").to_pylist(), strict=True))
    generations = dict(zip(tree.column("group_id").to_pylist(), tree.column("generation").to_pylist(), strict=True))
    as_of = dict(zip(tree.column("generation").to_pylist(), tree.column("as_of").to_pylist(), strict=True))
    leaves = sorted(set(parents) - set(parents.values()))
    rows = {group: row for row, group in enumerate(texts.column("entity_id").to_pylist()) if has_vector[row]}
    below: dict[str, list[str]] = {}
    for leaf in leaves:
        if leaf in rows:
            for above in _ancestors(leaf, parents):
                below.setdefault(above, []).append(leaf)

    def mean(group: str, rung: Rung) -> GroupText:
        members = below[group]
        return GroupText(vectors[[rows[leaf] for leaf in members]].mean(axis=0), rung, digest(members))

    columns = {name: texts.column(name).to_pylist() for name in ("request_key", "prompt_version", "model")}
    found: dict[str, GroupText] = {}
    for leaf in leaves:
        if leaf in rows:
            row = rows[leaf]
            key, version, model = (columns[name][row] for name in ("request_key", "prompt_version", "model"))
            found[leaf] = GroupText(vectors[row], Rung.GROUP, key, key, version, model)
            continue
        for above in _ancestors(leaf, parents):
            if above in below:
                found[leaf] = mean(above, Rung.GROUP if parents[above] is not None else Rung.GLOBAL)
                break
    anybody: dict[int, GroupText] = {}
    for generation in as_of:
        known = [leaf for leaf in leaves if leaf in rows and generations[leaf] == generation]
        if known:
            average = vectors[[rows[leaf] for leaf in known]].mean(axis=0)
            anybody[generation] = GroupText(average, Rung.GLOBAL, digest(known))
    return GroupTexts(found, anybody, as_of)


def climb(
    own_entities: pa.ChunkedArray,
    own_valid_from: pa.ChunkedArray,
    own_has_vector: np.ndarray,
    universe: pa.Table,
    memberships: Sequence[Membership],
    dim: int,
) -> Climbed:
    """The rows that stand in where own knowledge (in order of entity) is missing.

    Of everybody in `universe` (entity_id, partition_no, valid_from, source_digest) or in a group: a row from each
    clustering on, with the mean of what the entity's groups stand for, or a repetition of its own; and for who has no
    row of its own at all, one that says so, so that nobody is left out. `dim` is the width d of all vectors.
    """
    own = _first_and_last(own_entities.to_pylist())
    moments = own_valid_from.cast(pa.int64()).to_numpy()
    joined = [_by_entity(m.members) for m in memberships]
    starts = {
        row["entity_id"]: row for row in universe.select(["entity_id", "partition_no", "valid_from", "source_digest"])
        .to_pylist()
    }  # fmt: skip
    generations = sorted({g for m in memberships for g in m.texts.as_of})
    rows: list[dict[str, object]] = []
    vectors: list[np.ndarray] = []
    own_row: list[int] = []
    has: list[bool] = []

    def add(row: dict[str, object], vector: np.ndarray | None, own_at: int = -1) -> None:
        rows.append(row)
        vectors.append(np.zeros(dim, np.float32) if vector is None else vector)
        has.append(vector is not None)
        own_row.append(own_at)

    for entity in sorted({*starts, *(e for members in joined for e in members)}):
        first, last = own.get(entity, (0, 0))
        if first == last and entity in starts:
            start = starts[entity]
            add(_row(entity, start["valid_from"], start["source_digest"], start["partition_no"]), None)
        for generation in generations:
            parts, at, place = _standing(entity, generation, memberships, joined)
            if not parts or at is None:
                continue
            micros = pa.scalar(at, TIMESTAMP).cast(pa.int64()).as_py()
            before = [r for r in range(first, last) if own_has_vector[r] and moments[r] <= micros]
            if before:
                add(_row(entity, at, "", None), None, before[-1])
                continue
            text = parts[0]
            row = _row(entity, at, digest(place), None)
            row["rung"] = str(Rung.GROUP if any(p.rung is Rung.GROUP for p in parts) else Rung.GLOBAL)
            row["status"], row["texts_digest"] = OK, digest([p.texts_digest for p in parts])
            row["request_key"], row["prompt_version"], row["model"] = text.request_key, text.prompt_version, text.model
            add(row, np.stack([p.vector for p in parts]).mean(axis=0))
    return Climbed(
        pa.Table.from_pylist(rows, _ROWS),
        np.array(vectors, np.float32).reshape(len(rows), dim),
        np.array(has, bool),
        np.array(own_row, np.int64),
    )


def _standing(
    entity: str,
    generation: int,
    memberships: Sequence[Membership],
    joined: Sequence[Mapping[str, Mapping[int, tuple[str, datetime]]]],
) -> tuple[list[GroupText], datetime | None, list[str]]:
    """What stands for an entity in one generation, from when on, and the groups that it is in."""
    parts: list[GroupText] = []
    at: datetime | None = None
    place: list[str] = [str(generation)]
    for membership, members in zip(memberships, joined, strict=True):
        group, since = members.get(entity, {}).get(generation, (None, membership.texts.as_of.get(generation)))
        text = membership.texts.leaves.get(group) if group else None
        # Who is in another kind's group needs no stranger's average beside it.
        if text is None and (group or not any(entity in others for others in joined)):
            text = membership.texts.anybody.get(generation)
        if text is not None and since is not None:
            parts.append(text)
            place.append(group or "")
            at = since if at is None else max(at, since)
    return parts, at, place


def _row(entity: str, valid_from: object, source_digest: object, partition_no: object) -> dict[str, object]:
    return {
        "entity_id": entity,
        "partition_no": NO_PARTITION if partition_no is None else partition_no,
        "valid_from": valid_from,
        "request_key": None,
        "source_digest": source_digest,
        "prompt_version": None,
        "status": MISSING,
        "model": None,
        "rung": str(Rung.NONE),
        "texts_digest": "",
    }


def _ancestors(group: str, parents: Mapping[str, str | None]) -> list[str]:
    """The groups above `group`, the nearest first."""
    found: list[str] = []
    above = parents[group]
    while above is not None:
        found.append(above)
        above = parents.get(above)
    return found


def _first_and_last(entities: Sequence[str]) -> dict[str, tuple[int, int]]:
    """By entity the range [first, last) of its rows, which lie together."""
    found: dict[str, tuple[int, int]] = {}
    for row, entity in enumerate(entities):
        found[entity] = (found.get(entity, (row, row))[0], row + 1)
    return found


def _by_entity(members: pa.Table) -> dict[str, dict[int, tuple[str, datetime]]]:
    found: dict[str, dict[int, tuple[str, datetime]]] = {}
    names = ("entity_id", "generation", "group_id", "joined_at")
    for entity, generation, group, joined_at in zip(*(members.column(n).to_pylist() for n in names), strict=True):
        found.setdefault(entity, {})[generation] = (group, joined_at)
    return found
