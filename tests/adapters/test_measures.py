import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from adapters.measures import auc, bootstrap_auc_difference, logloss


@given(
    label=st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(lambda v: 0 < sum(v) < len(v)),
    seed=st.integers(0, 1000),
)
def test_auc_is_that_of_scikit_learn_with_ties_and_weights(label: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.array(label, dtype=np.float32)
    score = rng.integers(0, 5, len(label)).astype(np.float32)
    weight = rng.integers(1, 4, len(label)).astype(np.float64)
    assert auc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert auc(truth, score, weight) == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))


def test_auc_of_one_class_or_nothing_is_nan() -> None:
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))
    assert np.isnan(auc(np.zeros(0), np.zeros(0)))


def test_logloss_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label, probability = rng.integers(0, 2, 50).astype(np.float32), rng.random(50)
    assert logloss(label, probability) == pytest.approx(log_loss(label, probability))
    assert logloss(np.array([1.0]), np.array([0.0])) == pytest.approx(-np.log(1e-7))


def test_bootstrap_draws_whole_users_and_pairs_the_models() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 300).astype(np.float32)
    user = np.repeat(np.arange(30), 10)
    score = rng.random(300)
    better = score + 0.3 * label
    same = bootstrap_auc_difference(label, score[None], score[None], user, draws=20, seed=1)
    np.testing.assert_array_equal(same, 0.0)
    gain = bootstrap_auc_difference(label, score[None], better[None], user, draws=200, seed=1)
    assert gain.mean() == pytest.approx(auc(label, better) - auc(label, score), abs=0.02)
    assert gain.min() > 0
    # One user: every resample is the sample itself.
    alone = bootstrap_auc_difference(label, score[None], better[None], np.zeros(300, int), draws=5, seed=1)
    np.testing.assert_allclose(alone, auc(label, better) - auc(label, score))


def test_bootstrap_averages_over_seeds() -> None:
    rng = np.random.default_rng(0)
    label, user = rng.integers(0, 2, 100).astype(np.float32), np.zeros(100, int)
    base, first, second = rng.random(100), rng.random(100), rng.random(100)
    both = bootstrap_auc_difference(label, np.stack([base, base]), np.stack([first, second]), user, draws=1, seed=0)
    expected = (auc(label, first) + auc(label, second)) / 2 - auc(label, base)
    assert both[0] == pytest.approx(expected)
