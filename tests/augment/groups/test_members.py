"""Which items are named: the greedy rules against plain loops, and against the best choice there is."""

from itertools import combinations
from math import e

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.groups.members import central_items, covered_share, covering_items, in_proportion

untimed = settings(deadline=None)

pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=30, unique=True)
whole_vectors = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=8)
)


def arrays(found: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    user, item = np.array(found, np.int32).T
    return user, item


def greedy_cover(found: list[tuple[int, int]], most: int) -> list[int]:
    """The rule in sets: most users waiting, then most users at all, then the first."""
    fans = {item: {u for u, i in found if i == item} for _, item in found}
    everyone = {user for user, _ in found}
    waiting, chosen = set(everyone), []
    while len(chosen) < most and len(chosen) < len(fans):
        free = [item for item in sorted(fans) if item not in chosen]
        if not any(fans[item] & waiting for item in free):
            waiting = set(everyone)
        best = max(free, key=lambda item: (len(fans[item] & waiting), len(fans[item]), -item))
        chosen.append(best)
        waiting -= fans[best]
    return chosen


@untimed
@given(pairs, st.integers(1, 6))
def test_covering_items_are_those_of_a_plain_greedy_loop(found: list[tuple[int, int]], most: int) -> None:
    assert covering_items(*arrays(found), most) == greedy_cover(found, most)


@untimed
@given(pairs, st.integers(1, 4))
def test_covering_items_reach_the_bound_of_the_best_choice(found: list[tuple[int, int]], most: int) -> None:
    user, item = arrays(found)
    codes = sorted(set(item.tolist()))
    best = max(covered_share(user, item, list(some)) for some in combinations(codes, min(most, len(codes))))
    reached = covered_share(user, item, covering_items(user, item, most))
    assert reached >= (1 - 1 / e) * best
    assert reached <= best


def test_when_all_are_covered_each_is_covered_again() -> None:
    # 0 is everyone's; then 1 and 2 cover everyone a second time, and 3 adds nobody to them.
    found = [(user, 0) for user in range(4)] + [(0, 1), (1, 1), (2, 2), (3, 2), (0, 3)]
    assert covering_items(*arrays(found), 3) == [0, 1, 2]


def facility(similarity: np.ndarray, chosen: tuple[int, ...] | list[int]) -> float:
    return float(similarity[:, list(chosen)].max(axis=1).sum())


@untimed
@given(whole_vectors, st.integers(1, 4))
def test_central_items_reach_the_bound_of_the_best_choice(rows: list[list[int]], most: int) -> None:
    vectors = np.array(rows, np.float32)
    similarity = np.maximum(vectors @ vectors.T, 0)
    chosen = central_items(vectors, most)
    count = min(most, len(rows))
    assert len(set(chosen)) == len(chosen) == count
    best = max(facility(similarity, some) for some in combinations(range(len(rows)), count))
    assert facility(similarity, chosen) >= (1 - 1 / e) * best


@untimed
@given(whole_vectors, st.integers(1, 4))
def test_each_central_item_adds_as_much_as_any_could(rows: list[list[int]], most: int) -> None:
    vectors = np.array(rows, np.float32)
    similarity = np.maximum(vectors @ vectors.T, 0)
    chosen: list[int] = []
    for found in central_items(vectors, most):
        free = [row for row in range(len(rows)) if row not in chosen]
        assert found == max(free, key=lambda row: (facility(similarity, [*chosen, row]), -row))
        chosen.append(found)


def test_lists_are_read_in_proportion_and_without_repetition() -> None:
    assert in_proportion([["a", "b", "c", "d"], ["x", "y"]], [30, 10], 4) == ["a", "b", "c", "x"]
    assert in_proportion([["a", "b", "c"], ["b", "x"], []], [2, 2, 9], 4) == ["a", "b", "x", "c"]
    assert in_proportion([], [], 4) == []
