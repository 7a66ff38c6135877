"""A generation of groups from a log: limits, names, tables, and nothing of what came later or in which order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.groups.build import GroupSet
from augment.groups.config import GroupsConfig
from prompts.render import Kind
from tests.augment.groups.worlds import Event, at, build, circles, item_ids, log_files
from warehouse.errors import UsageError
from warehouse.schemas import ALWAYS, GROUP_MEMBERS, GROUPS, ITEM_FACTORS

untimed = settings(deadline=None, max_examples=8)

GROUP_KINDS = (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS)
CONFIG = GroupsConfig(features="cooccurrence", rank=4, max_users=12, max_items=8, min_size=3, named_items=4)

logs = st.lists(
    st.tuples(
        st.integers(0, 40).map("u{}".format),
        st.integers(0, 25).map("i{}".format),
        st.integers(0, 99),
        st.sampled_from([1.0, 5.0]),
    ),
    max_size=150,
)


def rows_of(table: object, kind: Kind) -> list[dict]:
    return [row for row in table.to_pylist() if row["kind"] == str(kind)]


def leaves_of(groups: GroupSet, kind: Kind) -> dict[str, dict]:
    rows = rows_of(groups.groups, kind)
    parents = {row["parent_id"] for row in rows}
    return {row["group_id"]: row for row in rows if row["group_id"] not in parents}


def same(one: GroupSet, other: GroupSet) -> bool:
    tables = [(one.groups, other.groups), (one.members, other.members), (one.factors, other.factors)]
    return all(a.equals(b) for a, b in tables) and one.as_of == other.as_of


@untimed
@given(logs)
def test_every_entity_with_a_feature_is_in_one_group_of_bounded_size_with_names(log: list[Event]) -> None:
    items = sorted({f"i{number}" for number in range(0, 26, 2)})
    with log_files(log) as files:
        groups = build(files, items, CONFIG)
    assert [t.schema for t in (groups.groups, groups.members, groups.factors)] == [GROUPS, GROUP_MEMBERS, ITEM_FACTORS]
    met: dict[Kind, dict[str, set[str]]] = {kind: {} for kind in GROUP_KINDS}
    for user, item, _, value in log:
        if item in items:
            met[Kind.GROUP_LIKES if value > 3 else Kind.GROUP_DISLIKES].setdefault(user, set()).add(item)
    for kind in GROUP_KINDS:
        most = CONFIG.max_items if kind == Kind.GROUP_ITEMS else CONFIG.max_users
        members = {row["entity_id"]: row["group_id"] for row in rows_of(groups.members, kind)}
        assert len(members) == len(rows_of(groups.members, kind))
        leaves = leaves_of(groups, kind)
        assert sum(leaf["size"] for leaf in leaves.values()) == len(members)
        for name, leaf in leaves.items():
            inside = [entity for entity, group in members.items() if group == name]
            assert len(inside) == leaf["size"] <= most
            assert len(inside) >= min(CONFIG.min_size, len(members))
            candidates = inside if kind == Kind.GROUP_ITEMS else set.union(*(met[kind][user] for user in inside))
            assert set(leaf["named"]) <= set(candidates)
            assert len(set(leaf["named"])) == len(leaf["named"]) == min(CONFIG.named_items, len(candidates))
        assert all(row["named"] for row in rows_of(groups.groups, kind))
        assert len(members) + groups.report[kind].ungrouped == len(items if kind == Kind.GROUP_ITEMS else met[kind])
    liked = {item for some in met[Kind.GROUP_LIKES].values() for item in some}
    assert set(groups.factors["item_id"].to_pylist()) == liked
    assert rows_of(groups.members, Kind.GROUP_LIKES) == [] or len(met[Kind.GROUP_LIKES]) > 0


@untimed
@given(logs, st.randoms(use_true_random=False))
def test_files_rows_and_items_may_come_in_any_order(log: list[Event], random: object) -> None:
    items = item_ids(log)
    shuffled, others = list(log), list(items)
    random.shuffle(shuffled)
    random.shuffle(others)
    text = {item: np.array([len(item), number], np.float32) for number, item in enumerate(items, start=1)}
    config = CONFIG.model_copy(update={"features": "both"})
    cut = random.randrange(len(log) + 1)
    with log_files(log) as files:
        one = build(files, items, config, np.array([text[item] for item in items]).reshape(-1, 2))
    with log_files(shuffled[:cut], shuffled[cut:]) as files:
        other = build(files, others, config, np.array([text[item] for item in others]).reshape(-1, 2))
    assert same(one, other)


@untimed
@given(logs, logs, st.integers(1, 99))
def test_what_comes_later_changes_nothing(log: list[Event], more: list[Event], end: int) -> None:
    items = [f"i{number}" for number in range(26)]
    before = [event for event in log if event[2] < end]
    after = [(user, item, hour + end, value) for user, item, hour, value in more]
    with log_files(before) as files:
        known = build(files, items, CONFIG)
    with log_files(before, after) as files:
        again = build(files, items, CONFIG, until=at(end))
    assert same(known, again)
    assert known.as_of == (at(max(event[2] for event in before)) if before else ALWAYS)
    assert {row["joined_at"] for row in again.members.to_pylist()} <= {known.as_of}


def test_circles_are_found_and_named_by_their_own_items() -> None:
    events = circles(4, 9, 6)
    with log_files(events) as files:
        groups = build(files, item_ids(events), CONFIG)
    for kind, shift in ((Kind.GROUP_LIKES, 0), (Kind.GROUP_DISLIKES, 1), (Kind.GROUP_ITEMS, 0)):
        leaves = leaves_of(groups, kind)
        of_circle = {(row["entity_id"][1], row["group_id"]) for row in rows_of(groups.members, kind)}
        assert len(of_circle) == len(leaves) == groups.report[kind].groups == 4
        for circle, group in of_circle:
            assert {name[1] for name in leaves[group]["named"]} == {str((int(circle) + shift) % 4)}
    assert groups.report[Kind.GROUP_LIKES].represented == 1.0
    assert groups.report[Kind.GROUP_LIKES].largest == 9


def test_groups_know_their_parents_and_are_named_by_their_children() -> None:
    events = circles(4, 9, 6)
    with log_files(events) as files:
        groups = build(files, item_ids(events), CONFIG)
    rows = {row["group_id"]: row for row in rows_of(groups.groups, Kind.GROUP_LIKES)}
    root = rows["group_likes/g3/00000"]
    assert (root["parent_id"], root["size"]) == (None, 36)
    for name, row in rows.items():
        children = [child for child in rows.values() if child["parent_id"] == name]
        if children:
            assert sum(child["size"] for child in children) == row["size"]
            assert set(row["named"]) <= {item for child in children for item in child["named"]}
            assert all(child["group_id"] > name for child in children)
    assert {name[1] for name in root["named"]} == {"0", "1", "2", "3"}


def test_a_log_read_in_parts_makes_the_same_groups() -> None:
    events = circles(3, 9, 6)
    text = np.random.default_rng(0).standard_normal((18, 5)).astype(np.float32)
    config = GroupsConfig(features="text", max_users=12, max_items=8, min_size=3)
    with log_files(events) as files:
        whole = build(files, item_ids(events), config, text)
        parted = build(files, item_ids(events), config.model_copy(update={"max_events": 20}), text)
    assert same(whole, parted)
    assert whole.report == parted.report


def test_without_an_event_items_are_grouped_by_their_texts_alone() -> None:
    text = np.repeat(np.eye(2, dtype=np.float32), 7, axis=0)
    items = [f"i{number:02d}" for number in range(14)]
    groups = build([], items, CONFIG.model_copy(update={"features": "both"}), text)
    assert groups.as_of == ALWAYS
    assert sorted(leaf["size"] for leaf in leaves_of(groups, Kind.GROUP_ITEMS).values()) == [7, 7]
    assert rows_of(groups.groups, Kind.GROUP_LIKES) == rows_of(groups.groups, Kind.GROUP_DISLIKES) == []


def test_a_catalogue_that_names_an_item_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'i1' twice"):
        build([], ["i1", "i0", "i1"], CONFIG)
