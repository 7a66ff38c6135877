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

    Where `own_row` is not -1, the entity's own row of that number holds at that instant already. Where `replaces` is
    not -1, the own row of that number is without a vector, and this one stands in its place. `confirms` says of a row
    that what holds before it holds on.
    """

    rows: pa.Table
    vectors: np.ndarray
    has_vector: np.ndarray
    own_row: np.ndarray
    replaces: np.ndarray
    confirms: np.ndarray


@dataclass(frozen=True)
class _StandIn:
    """What stands for an entity from `micros` (since 1970) on: texts, and the groups that they are of."""

    at: datetime
    micros: int
    parts: Sequence[GroupText]
    place: Sequence[str]

    @property
    def rung(self) -> Rung:
        return Rung.GROUP if any(part.rung is Rung.GROUP for part in self.parts) else Rung.GLOBAL


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
    clustering on and from each group that is joined later, with the mean of what the entity's groups stand for, or a
    repetition of its own; instead of each own row without a vector, one with what stands in for it then; and for who
    has no row of its own at all, one at the beginning that says so, so that nobody is left out. `dim` is the width d of
    all vectors.
    """
    own = _first_and_last(own_entities.to_pylist())
    moments = own_valid_from.cast(pa.int64()).to_numpy()
    joined = [_by_entity(m.members) for m in memberships]
    columns = ["entity_id", "partition_no", "valid_from", "source_digest"]
    starts = {row["entity_id"]: row for row in universe.select(columns).to_pylist()}
    generations = sorted({g for m in memberships for g in m.texts.as_of})
    out = _Rows(dim)
    for entity in sorted({*starts, *(e for members in joined for e in members)}):
        first, last = own.get(entity, (0, 0))
        start = starts.get(entity)
        stand_ins = _stand_ins(entity, generations, memberships, joined, None if start is None else start["valid_from"])
        for stand_in in stand_ins:
            before = [r for r in range(first, last) if own_has_vector[r] and moments[r] <= stand_in.micros]
            if before:
                out.add(_row(entity, stand_in.at, "", None), own_row=before[-1], confirms=True)
            else:
                out.add(_row(entity, stand_in.at, digest(stand_in.place), None), stand_in)
        for row in range(first, last):
            held = _holding(stand_ins, moments[row]) if not own_has_vector[row] else None
            if held is not None:
                out.add(_row(entity, None, "", None), held, replaces=row)
        if first == last and start is not None:
            held = _holding(stand_ins, _micros(start["valid_from"]))
            beginning = _row(entity, start["valid_from"], start["source_digest"], start["partition_no"])
            if held is None:
                out.add(beginning)
            elif held.at < start["valid_from"]:
                # Before there was a stand-in, a row that nothing is known may have been published for that instant.
                out.add(beginning, held, confirms=True)
    return out.climbed()


class _Rows:
    """Collects the rows of `Climbed`."""

    def __init__(self, dim: int) -> None:
        self._rows: list[dict[str, object]] = []
        self._vectors: list[np.ndarray] = []
        self._has: list[bool] = []
        self._about: list[tuple[int, int, bool]] = []
        self._nothing = np.zeros(dim, np.float32)

    def add(
        self,
        row: dict[str, object],
        stand_in: _StandIn | None = None,
        *,
        own_row: int = -1,
        replaces: int = -1,
        confirms: bool = False,
    ) -> None:
        """Take in `row`, with what `stand_in` stands for written into it."""
        if stand_in is not None:
            parts, text = stand_in.parts, stand_in.parts[0]
            row["rung"], row["status"] = str(stand_in.rung), OK
            row["texts_digest"] = digest([p.texts_digest for p in parts])
            row["request_key"], row["prompt_version"], row["model"] = text.request_key, text.prompt_version, text.model
        self._rows.append(row)
        self._has.append(stand_in is not None)
        parts = [] if stand_in is None else stand_in.parts
        self._vectors.append(np.stack([p.vector for p in parts]).mean(axis=0) if parts else self._nothing)
        self._about.append((own_row, replaces, confirms))

    def climbed(self) -> Climbed:
        """All of them."""
        own_row, replaces, confirms = np.array(self._about, np.int64).reshape(-1, 3).T
        return Climbed(
            pa.Table.from_pylist(self._rows, _ROWS),
            np.array(self._vectors, np.float32).reshape(len(self._rows), len(self._nothing)),
            np.array(self._has, bool),
            own_row,
            replaces,
            confirms.astype(bool),
        )


def _stand_ins(
    entity: str,
    generations: Sequence[int],
    memberships: Sequence[Membership],
    joined: Sequence[Mapping[str, Mapping[int, tuple[str, datetime]]]],
    start: datetime | None,
) -> list[_StandIn]:
    """What stands for an entity, in order of time; of two clusterings that hold from the same moment the later one.
    The average of a clustering that does not know the entity takes no group's place.

    Who is in one kind's group needs no stranger's average for the other. `start`, where the entity has one, is when it
    begins: who joined a group only after that is a stranger until then.
    """
    found: list[_StandIn] = []
    for generation in generations:
        mine = [members.get(entity, {}).get(generation) for members in joined]
        since = [place[1] for place in mine if place is not None]
        averages, begins = [], []
        for membership in memberships:
            average = membership.texts.anybody.get(generation)
            if average is not None:
                averages.append(average)
                begins.append(membership.texts.as_of[generation])
        if averages and (not since or (start is not None and min(since) > max(start, *begins))):
            found.append(_stand_in(max(begins), averages, [str(generation), *([""] * len(averages))]))
        for at in sorted(set(since)):
            parts, place = [], [str(generation)]
            for membership, membering in zip(memberships, mine, strict=True):
                if membering is None or membering[1] > at:
                    continue
                text = membership.texts.leaves.get(membering[0]) or membership.texts.anybody.get(generation)
                if text is not None:
                    parts.append(text)
                    place.append(membering[0])
            if parts:
                found.append(_stand_in(at, parts, place))
    # Later generations come later, so of one moment the last counts.
    kept: list[_StandIn] = []
    for stand_in in sorted(found, key=lambda each: each.micros):
        if kept and kept[-1].rung is Rung.GROUP and stand_in.rung is Rung.GLOBAL:
            continue
        if kept and kept[-1].micros == stand_in.micros:
            kept.pop()
        kept.append(stand_in)
    return kept


def _stand_in(at: datetime, parts: Sequence[GroupText], place: Sequence[str]) -> _StandIn:
    return _StandIn(at, _micros(at), parts, place)


def _holding(stand_ins: Sequence[_StandIn], micros: int) -> _StandIn | None:
    """What stands in at that moment."""
    return next((stand_in for stand_in in reversed(stand_ins) if stand_in.micros <= micros), None)


def _micros(at: datetime) -> int:
    micros: int = pa.scalar(at, TIMESTAMP).cast(pa.int64()).as_py()
    return micros


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
