"""Whose knowledge stands in for whom, against a walk up the ladder that is written down plainly."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.ladder import Climbed, Membership, climb, group_vectors
from warehouse.schemas import TIMESTAMP

START = datetime(2025, 1, 1, tzinfo=UTC)
USERS = [f"u{n}" for n in range(6)]
# A root with two children, one of which has two of its own.
PARENTS = {"root": None, "a": "root", "b": "root", "a1": "a", "a2": "a"}
LEAVES = ["a1", "a2", "b"]


def at(day: int) -> datetime:
    return START + timedelta(days=day)


def tree(as_of: datetime) -> pa.Table:
    return pa.table(
        {
            "group_id": list(PARENTS),
            "parent_id": pa.array(PARENTS.values(), pa.string()),
            "generation": [1] * len(PARENTS),
            "as_of": pa.array([as_of] * len(PARENTS), TIMESTAMP),
        }
    )


def texts(answered: list[str]) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Rows about these leaves; leaf n has the unit vector n."""
    rows = pa.table(
        {
            "entity_id": pa.array(answered, pa.string()),
            "request_key": pa.array([f"key-{leaf}" for leaf in answered], pa.string()),
            "prompt_version": pa.array(["v"] * len(answered), pa.string()),
            "model": pa.array(["m"] * len(answered), pa.string()),
        }
    )
    vectors = np.eye(3, dtype=np.float32)[[LEAVES.index(leaf) for leaf in answered]].reshape(-1, 3)
    return rows, vectors, np.ones(len(answered), bool)


def standing(leaf: str | None, answered: list[str]) -> tuple[str, np.ndarray] | None:
    """The oracle: up the tree from the leaf until somebody below was answered."""
    below = {"a1": ["a1"], "a2": ["a2"], "b": ["b"], "a": ["a1", "a2"], "root": LEAVES}
    at_node = leaf or "root"
    while True:
        known = [x for x in below[at_node] if x in answered]
        if known:
            rung = "global" if at_node == "root" else "group"
            return rung, np.eye(3)[[LEAVES.index(x) for x in known]].mean(axis=0)
        if at_node == "root":
            return None
        at_node = PARENTS[at_node] or "root"


def climbed(
    members: dict[str, str], answered: list[str], own: dict[str, list[tuple[int, bool]]], as_of: int
) -> Climbed:
    rows = sorted((user, day, has) for user, entries in own.items() for day, has in entries)
    universe = pa.table(
        {
            "entity_id": USERS,
            "partition_no": pa.array([0] * len(USERS), pa.int32()),
            "valid_from": pa.array([at(0)] * len(USERS), TIMESTAMP),
            "source_digest": [f"first-{user}" for user in USERS],
        }
    )
    joined = pa.table(
        {
            "entity_id": pa.array(sorted(members), pa.string()),
            "group_id": pa.array([members[user] for user in sorted(members)], pa.string()),
            "generation": pa.array([1] * len(members), pa.int32()),
            "joined_at": pa.array([at(as_of)] * len(members), TIMESTAMP),
        }
    )
    return climb(
        pa.chunked_array([pa.array([user for user, _, _ in rows], pa.string())]),
        pa.chunked_array([pa.array([at(day) for _, day, _ in rows], TIMESTAMP)]),
        np.array([has for _, _, has in rows], bool),
        universe,
        [Membership(joined, group_vectors(tree(at(as_of)), *texts(answered)))],
        3,
    )


@settings(max_examples=150, deadline=None)
@given(
    members=st.dictionaries(st.sampled_from(USERS), st.sampled_from(LEAVES)),
    answered=st.lists(st.sampled_from(LEAVES), unique=True),
    own=st.dictionaries(
        st.sampled_from(USERS), st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=3)
    ),
    as_of=st.integers(1, 8),
)
def test_everybody_stands_on_the_highest_rung_that_holds(
    members: dict[str, str], answered: list[str], own: dict[str, list[tuple[int, bool]]], as_of: int
) -> None:
    found = climbed(members, answered, own, as_of)
    added = list(zip(found.rows.to_pylist(), found.vectors, found.has_vector, found.own_row, strict=True))
    for user in USERS:
        mine = [entry for entry in added if entry[0]["entity_id"] == user]
        # Nobody is left out: a row of its own, or one that the ladder adds.
        assert own.get(user) or mine
        later = [entry for entry in mine if entry[0]["valid_from"] == at(as_of)]
        expected = standing(members.get(user), answered)
        assert found.vectors.shape == (len(added), 3)
        if any(has and day <= as_of for day, has in own.get(user, ())):
            assert [repeats >= 0 for _, _, _, repeats in later] == ([True] if expected else [])
        elif expected is None:
            assert not later
        else:
            [(row, vector, has, repeats)] = later
            assert (row["rung"], has, repeats) == (expected[0], True, -1)
            np.testing.assert_allclose(vector, expected[1], rtol=1e-6)
        # Nothing is known before the clustering ended.
        assert all(not has for row, _, has, repeats in mine if row["valid_from"] < at(as_of) and repeats < 0)


def test_a_user_in_two_kinds_of_groups_stands_for_both() -> None:
    likes = Membership(_member("u0", "a1"), group_vectors(tree(at(1)), *texts(["a1"])))
    dislikes = Membership(_member("u0", "b"), group_vectors(tree(at(1)), *texts(["b"])))
    nobody = pa.chunked_array([pa.array([], pa.string())])
    found = climb(
        nobody,
        pa.chunked_array([pa.array([], TIMESTAMP)]),
        np.zeros(0, bool),
        pa.table({"entity_id": [], "partition_no": [], "valid_from": [], "source_digest": []}),
        [likes, dislikes],
        3,
    )
    assert found.rows.column("rung").to_pylist() == ["group"]
    np.testing.assert_allclose(found.vectors, [[0.5, 0.0, 0.5]])


def test_what_a_row_is_made_of_is_named_by_its_digest() -> None:
    one, other = (climbed({"u0": "a1"}, answered, {}, 1).rows for answered in (["a1"], ["a1", "a2"]))
    stranger, changed = (climbed({}, answered, {}, 1).rows for answered in (["a1"], ["a1", "a2"]))

    def digest_of(rows: pa.Table) -> str:
        [row] = [r for r in rows.to_pylist() if r["entity_id"] == "u0" and r["rung"] != "none"]
        digest: str = row["texts_digest"]
        return digest

    assert digest_of(one) == digest_of(other)
    assert digest_of(stranger) != digest_of(changed)


def _member(user: str, leaf: str) -> pa.Table:
    return pa.table(
        {
            "entity_id": [user],
            "group_id": [leaf],
            "generation": pa.array([1], pa.int32()),
            "joined_at": pa.array([at(1)], TIMESTAMP),
        }
    )
