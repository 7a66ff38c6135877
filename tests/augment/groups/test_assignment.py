"""Frozen groups: later entities join the nearest, by the clustering's own features, and nothing else moves."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from augment.groups.assignment import FrozenGroups, NewItems, assign_new, grown
from augment.groups.build import GroupSet
from augment.groups.config import GroupsConfig
from prompts.render import Kind
from tests.augment.groups.worlds import POSITIVE, at, build, circles, item_ids, log_files
from warehouse.errors import UsageError
from warehouse.schemas import GROUP_MEMBERS, GROUPS

CONFIG = GroupsConfig(features="cooccurrence", rank=4, max_users=12, max_items=8, min_size=3, named_items=4)
WITH_TEXT = CONFIG.model_copy(update={"features": "both"})
EVENTS = circles(3, 9, 6)
ITEMS = item_ids(EVENTS)
TEXT = np.repeat(np.eye(3, 4, dtype=np.float32), 6, axis=0)
END = len(EVENTS)


@pytest.fixture(scope="module")
def made() -> GroupSet:
    with log_files(EVENTS) as files:
        return build(files, ITEMS, WITH_TEXT, TEXT)


def frozen(made: GroupSet) -> FrozenGroups:
    found = FrozenGroups.newest(made.groups, made.members, made.factors)
    assert found is not None
    return found


def group_of(made: GroupSet, kind: Kind, entity: str) -> str:
    [group] = [r["group_id"] for r in made.members.to_pylist() if (r["kind"], r["entity_id"]) == (kind, entity)]
    return group


def assign(made: GroupSet, files: list[Path], until: int | None = None, items: NewItems | None = None) -> list[dict]:
    end = None if until is None else at(until)
    table = assign_new(frozen(made), files, POSITIVE, WITH_TEXT, created_at=at(20_000), until=end, items=items)
    assert table.schema == GROUP_MEMBERS
    return table.to_pylist()


def test_users_with_the_tastes_of_a_circle_join_its_groups(made: GroupSet) -> None:
    late = [
        ("new", "i1.000", END + 5, 5.0),
        ("new", "i1.003", END + 7, 5.0),
        ("new", "i2.001", END + 9, 1.0),
        ("hater", "i0.002", END + 1, 1.0),
        ("stranger", "not in the catalogue then", END + 1, 5.0),
    ]
    with log_files(EVENTS, late) as files:
        rows = assign(made, files)
    assert [(r["kind"], r["entity_id"], r["group_id"], r["joined_at"]) for r in rows] == [
        ("group_likes", "new", group_of(made, Kind.GROUP_LIKES, "u1.000"), at(END + 7)),
        ("group_dislikes", "hater", group_of(made, Kind.GROUP_DISLIKES, "u2.000"), at(END + 1)),
        ("group_dislikes", "new", group_of(made, Kind.GROUP_DISLIKES, "u1.000"), at(END + 9)),
    ]
    assert {(r["generation"], r["created_at"]) for r in rows} == {(3, at(20_000))}


def test_a_user_of_every_taste_joins_a_group_that_is_asked_about(made: GroupSet) -> None:
    with log_files([("all", f"i{circle}.{item:03d}", END, 5.0) for circle in range(3) for item in range(6)]) as files:
        [row] = assign(made, files)
    assert row["group_id"] not in made.groups["parent_id"].to_pylist()


def test_the_members_of_a_clustering_would_join_their_own_groups(made: GroupSet) -> None:
    nobody = FrozenGroups.newest(made.groups, made.members.slice(0, 0), made.factors)
    assert nobody is not None
    with log_files(EVENTS) as files:
        rows = assign_new(nobody, files, POSITIVE, WITH_TEXT, created_at=at(0)).to_pylist()
    assert len(rows) == 54
    assert all(row["group_id"] == group_of(made, Kind(row["kind"]), row["entity_id"]) for row in rows)


def test_nobody_joins_twice_and_the_future_is_not_looked_at(made: GroupSet) -> None:
    late = [("new", "i1.000", END + 5, 5.0), ("new", "i0.000", END + 50, 5.0), ("newer", "i0.000", END + 50, 5.0)]
    with log_files(EVENTS, late) as files:
        first = assign(made, files, until=END + 50)
        assert [(r["entity_id"], r["joined_at"]) for r in first] == [("new", at(END + 5))]
        members = pa.concat_tables([made.members, pa.Table.from_pylist(first, GROUP_MEMBERS)])
        then = FrozenGroups.newest(made.groups, members, made.factors)
        assert then is not None
        second = assign_new(then, files, POSITIVE, WITH_TEXT, created_at=at(0)).to_pylist()
    assert [r["entity_id"] for r in second] == ["newer"]


def test_items_join_by_their_texts_from_when_they_are_there(made: GroupSet) -> None:
    text = np.array([[0, 5, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], np.float32)
    items = NewItems(["new", "old", "untold", "i0.000"], [at(END + 8), at(-9), at(0), at(0)], text)
    rows = assign(made, [], items=items)
    assert [(r["kind"], r["entity_id"], r["group_id"], r["joined_at"]) for r in rows] == [
        ("group_items", "new", group_of(made, Kind.GROUP_ITEMS, "i1.000"), at(END + 8)),
        ("group_items", "old", group_of(made, Kind.GROUP_ITEMS, "i0.000"), made.as_of),
    ]


@pytest.mark.parametrize(("features", "width"), [("both", 99), ("text", 3), ("text", 5)])
def test_texts_of_another_encoder_are_refused(features: str, width: int) -> None:
    config = CONFIG.model_copy(update={"features": features})
    made = build([], ITEMS, config, TEXT)
    other = NewItems(["new"], [at(0)], np.ones((1, width), np.float32))
    with pytest.raises(UsageError, match=rf"{width} numbers.* the encoder or groups\.features changed"):
        assign_new(frozen(made), [], POSITIVE, config, created_at=at(0), items=other)


def test_without_texts_a_new_item_waits_for_the_next_clustering() -> None:
    with log_files(EVENTS) as files:
        made = build(files, ITEMS, CONFIG)
        new = NewItems(["new"], [at(0)], TEXT[:1])
        assert assign_new(frozen(made), files, POSITIVE, CONFIG, created_at=at(0), items=new).num_rows == 0


def test_the_newest_generation_counts_and_none_is_none(made: GroupSet) -> None:
    older = pa.Table.from_pylist([{**row, "generation": 2} for row in made.groups.to_pylist()], GROUPS)
    found = FrozenGroups.newest(pa.concat_tables([made.groups, older]), made.members, made.factors)
    assert found is not None
    assert (found.generation, found.as_of, found.groups) == (3, made.as_of, made.groups)
    assert FrozenGroups.newest(*(t.slice(0, 0) for t in (made.groups, made.members, made.factors))) is None


def test_groups_that_grew_past_their_maximum_are_counted(made: GroupSet) -> None:
    assert set(grown(made.members, CONFIG).values()) == {0}
    smaller = CONFIG.model_copy(update={"max_users": 8})
    assert grown(made.members, smaller) == {Kind.GROUP_LIKES: 3, Kind.GROUP_DISLIKES: 3, Kind.GROUP_ITEMS: 0}
