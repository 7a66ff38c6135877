import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from adapters.measures import (
    auc,
    bootstrap_auc_difference,
    calibration_error,
    gauc,
    logloss,
    resample_users,
    resampled_aucs,
    user_aucs,
)


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


@given(seed=st.integers(0, 1000), n=st.integers(0, 60), users=st.integers(1, 8))
def test_gauc_is_the_mean_auc_of_users_by_their_samples(seed: int, n: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    label, score = rng.integers(0, 2, n).astype(np.float32), rng.integers(0, 4, n).astype(np.float32)
    user = rng.integers(0, users, n)
    by_user = user_aucs(label, score, user, users)
    total = weight = 0.0
    for u in range(users):
        mine = user == u
        alone = auc(label[mine], score[mine])
        assert by_user[u] == pytest.approx(alone, nan_ok=True)
        if np.isfinite(alone):
            total, weight = total + alone * mine.sum(), weight + mine.sum()
    assert gauc(label, score, user) == pytest.approx(total / weight if weight else np.nan, nan_ok=True)


def test_calibration_error_averages_the_gaps_of_equal_bins() -> None:
    probability = np.linspace(0.01, 0.99, 200)
    rng = np.random.default_rng(0)
    label = (rng.random(200) < probability).astype(np.float32)
    order = rng.permutation(200)
    expected = sum(abs(label[b : b + 10].mean() - probability[b : b + 10].mean()) / 20 for b in range(0, 200, 10))
    assert calibration_error(label[order], probability[order]) == pytest.approx(expected)
    assert calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0
    assert calibration_error(np.array([1.0, 0.0]), np.array([0.5, 0.5]), bins=1) == 0
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0)))


def test_a_resample_is_the_auc_of_its_users_repeated() -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 6, 80)
    label, score = rng.integers(0, 2, 80).astype(np.float32), rng.integers(0, 20, 80).astype(np.float32)
    drawn = resample_users(6, 5, seed=3)
    assert (drawn.sum(axis=1) == 6).all()
    for times, found in zip(drawn, resampled_aucs(label, score, user, drawn), strict=True):
        rows = np.repeat(np.arange(80), times[user])
        assert found == pytest.approx(auc(label[rows], score[rows]))
