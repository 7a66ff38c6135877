"""A clustering of a warehouse: users on what they like, users on what they turn down, and items; as three tables.

    with open log -> features of items and users -> a tree per kind -> the items that stand for each group -> rows

Nothing after `until` enters, so what is known of a group holds for events after the last one that was seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from augment.groups.clustering import Places, Tree, cluster
from augment.groups.config import GroupsConfig
from augment.groups.events import EventLog, open_log, parts
from augment.groups.features import Floats, UserFeatures, cluster_features
from augment.groups.members import central_items, covered_share, covering_items, in_proportion
from prompts.render import Kind
from warehouse.errors import UsageError
from warehouse.schemas import ALWAYS, GROUP_MEMBERS, GROUPS, ITEM_FACTORS


@dataclass(frozen=True)
class KindReport:
    """Groups that are asked about, their sizes, and how well the named items stand for the members.

    `ungrouped` entities have no feature, so no group: items that nobody liked and that have no text, users without an
    event of the sign. `represented` is, of users, the share that has an event with an item named for their group; of
    items, the mean similarity to the nearest one named.
    """

    groups: int
    members: int
    ungrouped: int
    smallest: int
    median: float
    largest: int
    represented: float


@dataclass(frozen=True)
class GroupSet:
    """One generation of groups: rows of GROUPS, GROUP_MEMBERS and ITEM_FACTORS, and a report per kind."""

    generation: int
    as_of: datetime
    groups: pa.Table
    members: pa.Table
    factors: pa.Table
    report: Mapping[Kind, KindReport]


@dataclass(frozen=True)
class _Grouped:
    """A kind's entities in their tree: ids row by row, named items by node, and the report's last figure."""

    ids: pa.Array
    tree: Tree
    named: Sequence[Sequence[str]]
    report: KindReport


def build_groups(
    events: Sequence[Path],
    positive: str,
    items: Sequence[str],
    text: Floats | None,
    config: GroupsConfig,
    *,
    generation: int,
    created_at: datetime,
    until: datetime | None = None,
) -> GroupSet:
    """The groups of all users and `items` by what happened before `until` (default: all), numbered `generation`.

    `events` are Parquet files of BEHAVIOURS, `positive` is the SQL of the label rule, `items` the distinct ids of the
    catalogue as it was known at `until`, and `text` [items, t] a vector for each, zero for none. The order of files,
    rows and items changes nothing. Ids are `<kind>/g<generation>/<node>`, parents before their children; a node with
    children is named by its children's items. A kind without an entity has no group.

    Raises UsageError where an item is named twice, or texts are needed and missing.
    """
    order = sorted(range(len(items)), key=items.__getitem__)
    ids = [items[place] for place in order]
    if len(set(ids)) < len(ids):
        twice = next(a for a, b in pairwise(ids) if a == b)
        raise UsageError(f"The catalogue to group names the item {twice!r} twice. Give one row per item.")
    if text is not None and len(text) == len(ids):
        text = text[order]
    with open_log(events, positive, ids, until) as log:
        as_of = log.end() or ALWAYS
        features = cluster_features(log, text, config)
        grouped = {
            Kind.GROUP_LIKES: _user_groups(log, True, features.likes, config),
            Kind.GROUP_DISLIKES: _user_groups(log, False, features.dislikes, config),
            Kind.GROUP_ITEMS: _item_groups(ids, features.items, config),
        }
    stamps = {"generation": generation, "as_of": as_of, "joined_at": as_of, "created_at": created_at}
    known = pa.array(np.flatnonzero(features.items.any(axis=1)))
    factors = {"item_id": pa.array(ids, pa.string()).take(known), "vector": _lists(features.items[known.to_numpy()])}
    return GroupSet(
        generation,
        as_of,
        groups=pa.concat_tables([_group_rows(kind, group, stamps) for kind, group in grouped.items()]),
        members=pa.concat_tables([_member_rows(kind, group, stamps) for kind, group in grouped.items()]),
        factors=table_of(ITEM_FACTORS, len(known), {**stamps, **factors}),
        report={kind: group.report for kind, group in grouped.items()},
    )


def group_id(kind: str, generation: int, node: int) -> str:
    """The name of a group, also of its texts in a retrieval pool. Ids stand in the order of nodes up to 99,999."""
    return f"{kind}/g{generation}/{node:05d}"


def table_of(schema: pa.Schema, rows: int, columns: Mapping[str, object]) -> pa.Table:
    """A table of `rows` rows from arrays, and single values that hold in every row."""
    arrays = []
    for field in schema:
        value = columns[field.name]
        whole = value if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), rows)
        arrays.append(whole.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _user_groups(log: EventLog, positive: bool, users: UserFeatures, config: GroupsConfig) -> _Grouped:
    tree = cluster(users.vectors, config.max_users, config.min_size)
    leaves, activity = tree.leaves, users.activity
    by_leaf, starts = _by_leaf(tree)
    events = np.add.reduceat(activity.events[by_leaf], starts[:-1]) if len(leaves) else np.zeros(0, np.int64)
    named: dict[int, list[str]] = {}
    covered = 0.0
    for part in parts(events, config.max_events):
        first, last = starts[part.start], starts[part.stop]
        pairs = log.pairs(positive, activity.ids.take(pa.array(by_leaf[first:last])))
        bounds = np.searchsorted(pairs.user, starts[part.start : part.stop + 1] - first)
        for leaf, low, high in zip(leaves[part], bounds[:-1], bounds[1:], strict=True):
            user, item = pairs.user[low:high], pairs.item[low:high]
            chosen = covering_items(user, item, config.named_items)
            covered += covered_share(user, item, chosen) * tree.size[leaf]
            named[int(leaf)] = [log.items[code] for code in chosen]
    report = _report(tree, users.without, covered / max(len(users.activity), 1))
    return _Grouped(activity.ids, tree, _named_nodes(tree, named, config.named_items), report)


def _item_groups(ids: Sequence[str], features: Floats, config: GroupsConfig) -> _Grouped:
    known = np.flatnonzero(features.any(axis=1))
    vectors = features[known]
    tree = cluster(vectors, config.max_items, config.min_size)
    by_leaf, starts = _by_leaf(tree)
    named: dict[int, list[str]] = {}
    similarity = 0.0
    for leaf, start, stop in zip(tree.leaves, starts[:-1], starts[1:], strict=True):
        rows = by_leaf[start:stop]
        chosen = central_items(vectors[rows], config.named_items)
        similarity += float((vectors[rows] @ vectors[rows[chosen]].T).max(axis=1).sum())
        named[int(leaf)] = [ids[known[row]] for row in rows[chosen]]
    report = _report(tree, len(ids) - len(known), similarity / max(len(known), 1))
    members = pa.array([ids[row] for row in known], pa.string())
    return _Grouped(members, tree, _named_nodes(tree, named, config.named_items), report)


def _by_leaf(tree: Tree) -> tuple[Places, Places]:
    """The points leaf after leaf, and where each leaf's begin, with the end of the last."""
    return np.argsort(tree.leaf, kind="stable"), np.concatenate([[0], np.cumsum(tree.size[tree.leaves])])


def _named_nodes(tree: Tree, leaves: Mapping[int, list[str]], most: int) -> list[list[str]]:
    """Named items by node: those of the leaves; of any other node its children's, in proportion to their sizes."""
    children: list[list[int]] = [[] for _ in tree.parent]
    for node, parent in enumerate(tree.parent):
        if parent >= 0:
            children[parent].append(node)
    named: dict[int, list[str]] = {}
    # Children come after their parents, so backwards they are named first.
    for node in reversed(range(len(children))):
        below = sorted(children[node], key=lambda child: -tree.size[child])
        sizes = [int(tree.size[child]) for child in below]
        named[node] = in_proportion([named[child] for child in below], sizes, most) if below else leaves[node]
    return [named[node] for node in range(len(children))]


def _report(tree: Tree, ungrouped: int, represented: float) -> KindReport:
    sizes = tree.size[tree.leaves]
    smallest, median, largest = np.quantile(sizes, [0, 0.5, 1]) if len(sizes) else (0, 0, 0)
    return KindReport(
        groups=len(sizes),
        members=int(sizes.sum()),
        ungrouped=ungrouped,
        smallest=int(smallest),
        median=float(median),
        largest=int(largest),
        represented=float(represented),
    )


def _group_rows(kind: Kind, group: _Grouped, stamps: Mapping[str, object]) -> pa.Table:
    tree, nodes = group.tree, len(group.tree.parent)
    ids = _node_ids(kind, stamps, nodes)
    parents = pa.array(tree.parent, mask=tree.parent < 0)
    columns = {
        "kind": str(kind),
        "group_id": ids,
        "parent_id": ids.take(parents),
        "size": pa.array(tree.size),
        "named": pa.array(group.named, pa.list_(pa.string())),
        "centroid": _lists(tree.centroid),
    }
    return table_of(GROUPS, nodes, {**stamps, **columns})


def _member_rows(kind: Kind, group: _Grouped, stamps: Mapping[str, object]) -> pa.Table:
    ids = _node_ids(kind, stamps, len(group.tree.parent))
    columns = {"kind": str(kind), "entity_id": group.ids, "group_id": ids.take(pa.array(group.tree.leaf))}
    return table_of(GROUP_MEMBERS, len(group.ids), {**stamps, **columns})


def _node_ids(kind: Kind, stamps: Mapping[str, object], nodes: int) -> pa.Array:
    generation = stamps["generation"]
    assert isinstance(generation, int)
    return pa.array([group_id(kind, generation, node) for node in range(nodes)], pa.string())


def _lists(rows: Floats) -> pa.Array:
    """The rows of a matrix as lists."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * np.int32(rows.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(rows).reshape(-1)))
