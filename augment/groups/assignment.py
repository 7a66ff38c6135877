"""Frozen groups: entities that come after a clustering join the leaf whose centroid is nearest, and nothing else moves.

The metric is the clustering's. A group may grow past its maximum this way, which costs no call and blurs its text;
`grown` counts such groups, and only a new clustering mends them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from augment.groups.build import table_of
from augment.groups.clustering import Places, nearest
from augment.groups.config import GroupsConfig
from augment.groups.events import open_log
from augment.groups.features import Floats, text_features, user_features
from prompts.render import Kind
from warehouse.errors import UsageError
from warehouse.schemas import GROUP_MEMBERS, TIMESTAMP


@dataclass(frozen=True)
class FrozenGroups:
    """One generation of GROUPS, GROUP_MEMBERS and ITEM_FACTORS, and the end of the events that its clustering saw."""

    groups: pa.Table
    members: pa.Table
    factors: pa.Table
    generation: int
    as_of: datetime

    @classmethod
    def newest(cls, groups: pa.Table, members: pa.Table, factors: pa.Table) -> Self | None:
        """The newest generation in stored tables of any; None when there is none yet.

        Of imported groups only the members are known: nobody can join them, so they are passed over.
        """
        groups = groups.filter(pc.greater(pc.list_value_length(groups["centroid"]), 0))
        generation = pc.max(groups["generation"]).as_py()
        if generation is None:
            return None
        groups, members, factors = (
            table.filter(pc.equal(table["generation"], generation)) for table in (groups, members, factors)
        )
        return cls(groups, members, factors, generation, groups["as_of"][0].as_py())

    def known(self, kind: Kind) -> pa.Array:
        """Ids of the kind's members."""
        return _flat(self.members.filter(pc.equal(self.members["kind"], str(kind)))["entity_id"])

    def leaves(self, kind: Kind) -> tuple[pa.Array, Floats]:
        """Ids of the kind's groups without children, by id, and their centroids [groups, d]."""
        groups = self.groups.filter(pc.equal(self.groups["kind"], str(kind))).sort_by("group_id")
        is_parent = pc.is_in(groups["group_id"], value_set=_flat(groups["parent_id"]))
        groups = groups.filter(pc.invert(is_parent))
        return _flat(groups["group_id"]), _matrix(groups["centroid"])


@dataclass(frozen=True)
class NewItems:
    """Distinct ids of items, from when on each is valid, and a text vector for each [n, t], zero for none."""

    ids: Sequence[str]
    valid_from: Sequence[datetime]
    text: Floats


def assign_new(
    frozen: FrozenGroups,
    events: Sequence[Path],
    positive: str,
    config: GroupsConfig,
    *,
    created_at: datetime,
    until: datetime | None = None,
    items: NewItems | None = None,
) -> pa.Table:
    """Rows of GROUP_MEMBERS for users with events before `until`, and for `items`, that are in no group of their kind.

    A user joins by the feature of all those events, with items that have a factor: the one that the clustering would
    have computed from them; `joined_at` is the time of the last. An item joins by its text alone, since the frozen
    factors know nothing of who likes it: compared with the text's part of the centroids, from its `valid_from` or the
    groups' end on. Without a feature there is no row, so an item waits for the next clustering where `config` has no
    texts. `config` is that of the clustering.

    Raises UsageError for texts that are wider or narrower than the clustering's, as far as the centroids tell.
    """
    factors = frozen.factors.sort_by("item_id")
    vectors = _matrix(factors["vector"])
    rows = []
    with open_log(events, positive, factors["item_id"].to_pylist(), until) as log:
        for kind, sign in ((Kind.GROUP_LIKES, True), (Kind.GROUP_DISLIKES, False)):
            new = log.activity(sign).without(frozen.known(kind))
            users = user_features(log, sign, new, vectors, config.max_events)
            rows.append(_joined(frozen, kind, users.activity.ids, users.activity.last, users.vectors, created_at))
    if items is not None and config.uses_text:
        is_known = pc.is_in(pa.array(items.ids, pa.string()), value_set=frozen.known(Kind.GROUP_ITEMS))
        places = np.flatnonzero(~is_known.to_numpy(zero_copy_only=False))
        text = text_features(items.text[places], config)
        _check_width(text.shape[1], frozen, config)
        since = pa.array([items.valid_from[place] for place in places], TIMESTAMP)
        ids = pa.array([items.ids[place] for place in places], pa.string())
        rows.append(_joined(frozen, Kind.GROUP_ITEMS, ids, since, text, created_at))
    return pa.concat_tables(rows)


def grown(members: pa.Table, config: GroupsConfig) -> dict[Kind, int]:
    """How many groups of each kind have more members than a clustering allows, in one generation of GROUP_MEMBERS."""
    most = {
        Kind.GROUP_LIKES: config.max_users,
        Kind.GROUP_DISLIKES: config.max_users,
        Kind.GROUP_ITEMS: config.max_items,
    }
    sizes = members.group_by(["kind", "group_id"]).aggregate([([], "count_all")])
    return {
        kind: pc.sum(pc.and_(pc.equal(sizes["kind"], str(kind)), pc.greater(sizes["count_all"], limit))).as_py() or 0
        for kind, limit in most.items()
    }


def _joined(
    frozen: FrozenGroups, kind: Kind, ids: pa.Array, since: pa.Array, vectors: Floats, created_at: datetime
) -> pa.Table:
    """Rows of those with a feature, in the nearest leaf of their kind; texts are compared with the centroids' ends."""
    leaves, centroids = frozen.leaves(kind)
    chosen: Places = np.full(len(ids), -1, np.int64)
    if len(leaves):
        chosen = nearest(vectors, np.ascontiguousarray(centroids[:, centroids.shape[1] - vectors.shape[1] :]))
    rows = pa.array(np.flatnonzero(chosen >= 0))
    last = since.take(rows).cast(TIMESTAMP).cast(pa.int64())
    joined_at = pc.max_element_wise(last, pa.scalar(frozen.as_of, TIMESTAMP).cast(pa.int64()))
    columns = {
        "generation": frozen.generation,
        "kind": str(kind),
        "entity_id": ids.take(rows),
        "group_id": leaves.take(pa.array(chosen).take(rows)),
        "joined_at": joined_at.cast(TIMESTAMP),
        "created_at": created_at,
    }
    return table_of(GROUP_MEMBERS, len(rows), columns)


def _check_width(texts: int, frozen: FrozenGroups, config: GroupsConfig) -> None:
    width = frozen.leaves(Kind.GROUP_ITEMS)[1].shape[1]
    if width and (texts > width if config.uses_events else texts != width):
        raise UsageError(
            f"The texts to assign have {texts} numbers, and the groups of generation {frozen.generation} compare "
            f"{width}: the encoder or groups.features changed since. Make groups anew, or go back to those settings."
        )


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _matrix(column: pa.ChunkedArray) -> Floats:
    """A column of equally long lists as a matrix [rows, d]."""
    flat: Floats = _flat(column).flatten().to_numpy()
    return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
