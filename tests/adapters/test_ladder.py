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
    members: dict[str, tuple[str, int]],
    answered: list[str],
    own: dict[str, list[tuple[int, bool]]],
    as_of: int,
    starts: dict[str, int] | None = None,
) -> Climbed:
    """`members`: leaf and day of joining; `own`: day and whether there is a vector; `starts`: day 0 for everybody."""
    rows = sorted((user, day, has) for user, entries in own.items() for day, has in entries)
    begins = dict.fromkeys(USERS, 0) if starts is None else starts
    universe = pa.table(
        {
            "entity_id": pa.array(begins, pa.string()),
            "partition_no": pa.array([0] * len(begins), pa.int32()),
            "valid_from": pa.array([at(day) for day in begins.values()], TIMESTAMP),
            "source_digest": pa.array([f"first-{user}" for user in begins], pa.string()),
        }
    )
    joined = pa.table(
        {
            "entity_id": pa.array(sorted(members), pa.string()),
            "group_id": pa.array([members[user][0] for user in sorted(members)], pa.string()),
            "generation": pa.array([1] * len(members), pa.int32()),
            "joined_at": pa.array([at(members[user][1]) for user in sorted(members)], TIMESTAMP),
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


@settings(max_examples=300, deadline=None)
@given(
    leaves=st.dictionaries(st.sampled_from(USERS), st.tuples(st.sampled_from(LEAVES), st.integers(0, 4))),
    answered=st.lists(st.sampled_from(LEAVES), unique=True),
    texts_of=st.dictionaries(
        st.sampled_from(USERS),
        st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), st.integers(0, 10)),
    ),
    first_days=st.dictionaries(st.sampled_from(USERS), st.integers(0, 9)),
    as_of=st.integers(1, 6),
)
def test_at_every_moment_the_highest_rung_that_holds_is_what_readers_see(
    leaves: dict[str, tuple[str, int]],
    answered: list[str],
    texts_of: dict[str, tuple[list[int], int]],
    first_days: dict[str, int],
    as_of: int,
) -> None:
    members = {user: (leaf, as_of + wait) for user, (leaf, wait) in leaves.items()}
    # From a user's first usable text on, every later row has a vector.
    own = {user: [(day, day >= usable) for day in days] for user, (days, usable) in texts_of.items()}
    # Own texts are about partitions, so who has some begins with the first of them.
    starts = first_days | {user: min(day for day, _ in entries) for user, entries in own.items()}
    found = climbed(members, answered, own, as_of, starts)
    own_rows = sorted((user, day, has) for user, entries in own.items() for day, has in entries)
    for user in USERS:
        seen = _rows_of(user, own_rows, found)
        # Nobody is left out.
        assert seen or (user not in starts and (user not in members or not answered))
        for day in range(12):
            held = [row for row in seen if row[0] <= at(day)]
            rung, vector = _expected(user, day, members, answered, own, as_of, starts)
            if not held:
                assert rung == "none"
                continue
            newest = max(moment for moment, _, _ in held)
            for moment, stands, numbers in held:
                if moment == newest:
                    assert stands == rung, (user, day)
                    if rung in ("group", "global"):
                        np.testing.assert_allclose(numbers, vector, rtol=1e-6)


def _rows_of(
    user: str, own_rows: list[tuple[str, int, bool]], found: Climbed
) -> list[tuple[datetime, str, np.ndarray]]:
    """Time, rung and vector of everything that is published about a user from the beginning."""
    rows = [
        (at(day), "own" if has else "none", np.zeros(3))
        for n, (owner, day, has) in enumerate(own_rows)
        if owner == user and n not in found.replaces
    ]
    added = zip(found.rows.to_pylist(), found.vectors, found.own_row, found.replaces, found.confirms, strict=True)
    for row, vector, own_row, replaces, confirms in added:
        if row["entity_id"] == user:
            moment = at(own_rows[replaces][1]) if replaces >= 0 else row["valid_from"]
            rung = "own" if own_row >= 0 else row["rung"]
            rows.append((moment, rung, vector))
            # What only confirms changes nothing where it is left out.
            assert not confirms or any(before < moment or own_row >= 0 for before, _, _ in rows)
    return rows


def _expected(
    user: str,
    day: int,
    members: dict[str, tuple[str, int]],
    answered: list[str],
    own: dict[str, list[tuple[int, bool]]],
    as_of: int,
    starts: dict[str, int],
) -> tuple[str, np.ndarray]:
    """The oracle: rung and vector at the end of `day`, step by step down the ladder."""
    nothing = ("none", np.zeros(3))
    if any(has and seen <= day for seen, has in own.get(user, ())):
        return "own", np.zeros(3)
    leaf, joined = members.get(user, (None, 99))
    if joined <= day:
        return standing(leaf, answered) or nothing
    # A stranger: somebody whom the clustering did not see, and who did not join as soon as it could be known.
    stranger = user not in members or (user in starts and joined > max(starts[user], as_of))
    if as_of <= day and stranger and (user in starts or user in members):
        return standing(None, answered) or nothing
    return nothing


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


def test_the_average_of_a_later_clustering_takes_no_groups_place() -> None:
    trees = pa.concat_tables([tree(at(1)), _of_generation_two(tree(at(3)))])
    answered, vectors, _ = texts(["a1", "b"])
    both = pa.concat_tables([answered, _of_generation_two(answered)])
    vectors = np.concatenate([vectors, np.full((2, 3), 7, np.float32)])
    second = _of_generation_two(_member("u1", "b")).set_column(3, "joined_at", pa.array([at(3)], TIMESTAMP))
    members = pa.concat_tables([_member("u0", "a1"), second])
    found = climb(
        pa.chunked_array([pa.array([], pa.string())]),
        pa.chunked_array([pa.array([], TIMESTAMP)]),
        np.zeros(0, bool),
        pa.table({"entity_id": [], "partition_no": [], "valid_from": [], "source_digest": []}),
        [Membership(members, group_vectors(trees, both, vectors, np.ones(4, bool)))],
        3,
    )
    rows = [(row["entity_id"], row["valid_from"], row["rung"]) for row in found.rows.to_pylist()]
    assert rows == [("u0", at(1), "group"), ("u1", at(1), "global"), ("u1", at(3), "group")]


def test_what_a_row_is_made_of_is_named_by_its_digest() -> None:
    one, other = (climbed({"u0": ("a1", 1)}, answered, {}, 1).rows for answered in (["a1"], ["a1", "a2"]))
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


def _of_generation_two(table: pa.Table) -> pa.Table:
    """The same rows, of groups with other names."""
    columns = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        if name in ("group_id", "parent_id"):
            values = [None if value is None else f"second {value}" for value in values]
        elif name == "entity_id" and "request_key" in table.column_names:
            values = [f"second {value}" for value in values]
        elif name == "generation":
            values = [2] * len(values)
        columns[name] = pa.array(values, table.schema.field(name).type)
    return pa.table(columns)
