"""Features: the factors against dense linear algebra, the means against a loop, and no trace of how a log is read."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from augment.groups.config import GroupsConfig
from augment.groups.events import Pairs, open_log
from augment.groups.features import cluster_features, cooccurrence_factors, mean_features, unit_rows, user_features
from tests.augment.groups.worlds import POSITIVE, circles, item_ids, log_files
from warehouse.errors import UsageError

untimed = settings(deadline=None)

COOCCURRENCE = GroupsConfig(features="cooccurrence", rank=4)


def random_pairs(seed: int, users: int, items: int, share: float) -> Pairs:
    user, item = np.nonzero(np.random.default_rng(seed).random((users, items)) < share)
    return Pairs(users, items, user.astype(np.int32), item.astype(np.int32))


def dense_factors(pairs: Pairs, rank: int) -> np.ndarray:
    """The formula of the module's docstring, on the whole matrix.

    Without `rank` clearly separate from what is cut off there is no single answer, and hypothesis looks for another.
    """
    r = np.zeros((pairs.users, pairs.items))
    r[pairs.user, pairs.item] = 1
    r = r[r.any(axis=1)]
    met = r.any(axis=0)
    of_user, of_item = r.sum(axis=1), r[:, met].sum(axis=0)
    x = r[:, met] / np.sqrt(np.outer(of_user + of_user.mean(), of_item + of_item.mean()))
    _, values, right = np.linalg.svd(x, full_matrices=False)
    assume(rank >= len(values) or values[rank - 1] > 1.05 * values[rank])
    factors = np.zeros((pairs.items, min(rank, len(values))))
    factors[met] = (right.T * values)[:, :rank]
    lengths = np.linalg.norm(factors, axis=1, keepdims=True)
    return np.where(lengths > 1e-9, factors / np.where(lengths > 1e-9, lengths, 1), 0)


@untimed
@given(st.integers(0, 2**32), st.integers(2, 25), st.integers(2, 12), st.integers(1, 14), st.floats(0.2, 0.9))
def test_factors_agree_with_the_dense_formula(seed: int, users: int, items: int, rank: int, share: float) -> None:
    pairs = random_pairs(seed, users, items, share)
    found = cooccurrence_factors(pairs, rank, seed=0)
    if not len(pairs.item):
        assert found.shape == (items, 0)
        return
    expected = dense_factors(pairs, rank)
    assert len(found) == items
    assert found.shape[1] <= rank
    # All that a clustering can tell: signs, and turns among directions of equal singular values, are nobody's choice.
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_few_factors_of_a_large_matrix_agree_with_the_dense_formula() -> None:
    random = np.random.default_rng(0)
    tastes, kinds = random.dirichlet(np.full(6, 0.2), 300), random.dirichlet(np.full(6, 0.2), 200)
    user, item = np.nonzero(random.random((300, 200)) < tastes @ kinds.T)
    pairs = Pairs(300, 200, user.astype(np.int32), item.astype(np.int32))
    found, expected = cooccurrence_factors(pairs, 6, seed=0), dense_factors(pairs, 6)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


def test_an_item_that_only_vectors_cut_off_tell_of_has_no_factor() -> None:
    # A circle of five users and six items, and one user with an item of their own.
    matrix = np.pad(np.ones((5, 6)), (0, 1))
    matrix[5, 6] = 1
    user, item = np.nonzero(matrix)
    found = cooccurrence_factors(Pairs(6, 7, user.astype(np.int32), item.astype(np.int32)), 1, seed=0)
    assert found.tolist() == [[1.0]] * 6 + [[0.0]]


def test_equal_singular_values_leave_nothing_to_chance() -> None:
    alone = np.arange(30, dtype=np.int32)
    one, other = (cooccurrence_factors(Pairs(30, 30, alone, alone), 20, seed=0) for _ in range(2))
    assert np.array_equal(one, other)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_a_users_feature_is_the_mean_of_the_items_at_unit_length(seed: int, users: int, items: int) -> None:
    pairs = random_pairs(seed, users, items, 0.5)
    vectors = np.random.default_rng(seed).standard_normal((items, 3)).astype(np.float32)
    found = mean_features(pairs, vectors)
    for user in range(users):
        mine = vectors[pairs.item[pairs.user == user]]
        expected = mine.mean(axis=0) / np.linalg.norm(mine.mean(axis=0)) if len(mine) else np.zeros(3)
        np.testing.assert_allclose(found[user], expected, atol=1e-4)


def test_opposite_items_leave_a_user_without_a_feature() -> None:
    pairs = Pairs(1, 2, np.zeros(2, np.int32), np.arange(2, dtype=np.int32))
    assert not mean_features(pairs, unit_rows(np.array([[1, 2, 3], [-1, -2, -3]], np.float32))).any()


def test_texts_and_cooccurrence_have_their_shares_and_the_unknown_is_zero() -> None:
    events = circles(2, 6, 5)
    items = [*item_ids(events), "z", "zz"]
    text = np.random.default_rng(0).standard_normal((len(items), 7)).astype(np.float32)
    text[-1] = 0
    config = GroupsConfig(rank=3, text_weight=0.2)
    with log_files(events) as files, open_log(files, POSITIVE, items) as log:
        found = cluster_features(log, text, config).items
    lengths = [(found[:, block] ** 2).sum(axis=1) for block in (slice(0, 3), slice(3, 10))]
    np.testing.assert_allclose(lengths[0], [0.8] * 10 + [0, 0], atol=1e-6)
    np.testing.assert_allclose(lengths[1], [0.2] * 11 + [0], atol=1e-6)


@pytest.mark.parametrize("rows", [None, 3])
def test_texts_that_are_needed_and_missing_are_asked_for(rows: int | None) -> None:
    text = None if rows is None else np.ones((rows, 2), np.float32)
    wanted = pytest.raises(UsageError, match="needs a text vector for each of 4 items")
    with open_log([], POSITIVE, ["a", "b", "c", "d"]) as log, wanted:
        cluster_features(log, text, GroupsConfig())


def test_users_read_in_parts_have_the_features_of_users_read_at_once() -> None:
    events = circles(3, 8, 6)
    items = item_ids(events)
    with log_files(events) as files, open_log(files, POSITIVE, items) as log:
        whole = cluster_features(log, None, COOCCURRENCE)
        again = [
            user_features(log, sign, log.activity(sign), whole.items, max_events=9).vectors for sign in (True, False)
        ]
    assert len(whole.likes.vectors) == 24
    assert np.array_equal(again[0], whole.likes.vectors)
    assert np.array_equal(again[1], whole.dislikes.vectors)


def test_a_sample_of_the_log_factorises_and_everyone_has_a_feature() -> None:
    events = circles(3, 8, 6)
    config = GroupsConfig(features="cooccurrence", rank=4, max_events=60)
    with log_files(events) as files, open_log(files, POSITIVE, item_ids(events)) as log:
        sampled, whole = (cluster_features(log, None, c) for c in (config, COOCCURRENCE))
    assert len(sampled.likes.vectors) == 24
    assert not np.array_equal(sampled.items, whole.items)


def test_a_user_who_comes_later_gets_the_feature_that_the_clustering_would_have_computed() -> None:
    events = circles(2, 8, 6)
    items = item_ids(events)
    with log_files(events) as files, open_log(files, POSITIVE, items) as log:
        trained = cluster_features(log, None, COOCCURRENCE)
    known = trained.items.any(axis=1)
    late = trained.likes.activity.ids[5].as_py()
    factored = [item for item, k in zip(items, known, strict=True) if k]
    with log_files([e for e in events if e[0] == late]) as files, open_log(files, POSITIVE, factored) as log:
        alone = user_features(log, True, log.activity(True), trained.items[known], 10**6)
    assert alone.activity.ids == pa.array([late])
    assert np.array_equal(alone.vectors[0], trained.likes.vectors[5])
