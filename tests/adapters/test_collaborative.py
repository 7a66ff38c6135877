from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict

from adapters.collaborative import FACTOR_SHRINK, ITEM_SHRINK, USER_SHRINK, Interactions, foretelling, reduction
from adapters.samples import Samples
from tests.adapters.worlds import World


def naive_residuals(samples: Samples, train: np.ndarray) -> tuple[dict[int, float], dict[int, float], float]:
    """Biases of users and items by code, sample by sample, and the mean label."""
    rows = np.flatnonzero(train)
    mean = float(np.mean([samples.label[r] for r in rows]))
    user_bias, item_bias = {}, {}
    for user in set(samples.user[rows].tolist()):
        own = [samples.label[r] - mean for r in rows if samples.user[r] == user]
        user_bias[user] = sum(own) / (len(own) + USER_SHRINK)
    for item in set(samples.item[rows].tolist()):
        own = [samples.label[r] - mean - user_bias[samples.user[r]] for r in rows if samples.item[r] == item]
        item_bias[item] = sum(own) / (len(own) + ITEM_SHRINK)
    return user_bias, item_bias, mean


@pytest.fixture(scope="module")
def few(world: World) -> tuple[Samples, np.ndarray]:
    samples = world.samples.take(np.arange(0, len(world.samples), 8))
    return samples, samples.ts < np.quantile(samples.ts, 0.8)


def test_factors_are_the_truncated_decomposition_of_what_biases_leave(few: tuple[Samples, np.ndarray]) -> None:
    samples, train = few
    known = Interactions.fit(samples, train, rank=6)
    user_bias, item_bias, mean = naive_residuals(samples, train)
    dense = np.zeros((len(samples.users), len(samples.items)))
    counts = [
        np.bincount(c[train], minlength=n) for c, n in zip((samples.user, samples.item), dense.shape, strict=True)
    ]
    for row in np.flatnonzero(train):
        user, item = samples.user[row], samples.item[row]
        left_over = samples.label[row] - mean - user_bias[user] - item_bias[item]
        dense[user, item] += left_over / np.sqrt((counts[0][user] + FACTOR_SHRINK) * (counts[1][item] + FACTOR_SHRINK))
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(known.users @ known.items.T, (left[:, :6] * values[:6]) @ right[:6], atol=0.02)
    # Items that appear only later have no factors.
    assert (known.items.any(axis=1) == (counts[1] > 0)).all()
    assert not known.items.any(axis=1).all()


def test_more_factors_than_the_interactions_hold_are_zero(world: World) -> None:
    known = Interactions.fit(world.samples.take(np.arange(3)), np.ones(3, bool), rank=500)
    assert known.users.shape == (len(world.samples.users), 500)
    assert np.isfinite(known.users).all()
    assert not known.items[:, 200:].any()


@pytest.mark.parametrize("side", ["user", "item"])
def test_targets_are_sums_over_the_samples_that_read_a_row(few: tuple[Samples, np.ndarray], side: str) -> None:
    samples, train = few
    known = Interactions.fit(samples, train, rank=3)
    # Users and items have two texts each, of which samples read one or the other; some read none.
    own, other = (samples.user, samples.item) if side == "user" else (samples.item, samples.user)
    row = 2 * own + (np.arange(len(samples)) % 2)
    row[::7] = -1
    targets, trust = known.targets("user" if side == "user" else "item", row[train], 2 * int(own.max()) + 2)
    user_bias, item_bias, mean = naive_residuals(samples, train)
    other_bias = item_bias if side == "user" else user_bias
    factors = known.items if side == "user" else known.users
    events = np.bincount(other[train], minlength=len(factors))
    loading = factors * np.sqrt(events + FACTOR_SHRINK)[:, None]
    loading = loading / np.sqrt(np.mean([loading[other[r]] ** 2 for r in np.flatnonzero(train)], axis=0))
    for text in np.unique(row[train & (row >= 0)])[:: 9 if side == "user" else 25]:
        read = [r for r in np.flatnonzero(train) if row[r] == text]
        assert read
        alone = sum(samples.label[r] - mean - other_bias[other[r]] for r in read)
        pair = sum(
            (samples.label[r] - mean - user_bias[samples.user[r]] - item_bias[samples.item[r]]) * loading[other[r]]
            for r in read
        )
        expected = np.append(alone, pair) / (len(read) + FACTOR_SHRINK)
        np.testing.assert_allclose(targets[text], expected, atol=1e-6)
        assert trust[text] == pytest.approx(len(read) / (len(read) + FACTOR_SHRINK))


def test_foretelling_is_ridge_regression_judged_on_entities_it_did_not_see() -> None:
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(120), 2)
    vectors = rng.normal(size=(240, 12)) + 2.0
    targets = np.stack([vectors @ rng.normal(size=12) + rng.normal(size=240), rng.normal(size=240)], axis=1)
    trust = rng.uniform(0.2, 1.0, 240)
    projection, explained = foretelling(vectors, targets, trust, entity)
    x, t = vectors - vectors.mean(axis=0), targets - (trust @ targets) / trust.sum()
    penalty = np.trace(x.T @ (x * trust[:, None])) / 12
    found = []
    for scale in np.logspace(-4, 2, 13):
        model = Ridge(alpha=scale * penalty, fit_intercept=False)
        seen = cross_val_predict(model, x, t[:, 0], groups=entity, cv=GroupKFold(10), params={"sample_weight": trust})
        found.append(1 - (trust @ (t[:, 0] - seen) ** 2) / (trust @ t[:, 0] ** 2))
    # Folds are others than scikit-learn's.
    assert explained[0] == pytest.approx(max(found), abs=0.02)
    fits = [Ridge(alpha=s * penalty, fit_intercept=False).fit(x, t[:, 0], trust).coef_ for s in np.logspace(-4, 2, 13)]
    cosines = [abs(f @ projection[:, 0]) / np.linalg.norm(f) / np.linalg.norm(projection[:, 0]) for f in fits]
    assert max(cosines) == pytest.approx(1.0, abs=1e-6)
    # The second target is noise: nothing foretells it.
    assert explained[1] < 0.05 < explained[0]


def test_texts_that_foretell_nothing_give_zeros() -> None:
    rng = np.random.default_rng(1)
    vectors, targets = rng.normal(size=(300, 8)), rng.normal(size=(300, 5))
    projection, explained = foretelling(vectors, targets, np.ones(300), np.arange(300))
    assert explained.max() < 0.03
    np.testing.assert_array_equal(projection[:, explained == 0], 0.0)
    one, none = foretelling(vectors[:1], targets[:1], np.ones(1), np.zeros(1))
    assert not one.any()
    assert not none.any()


def test_directions_find_what_people_choose_by_where_components_do_not() -> None:
    """Items' texts differ most in what nobody cares about."""
    rng = np.random.default_rng(2)
    users, items, events = 150, 300, 12_000
    taste, quality = rng.normal(size=(users, 2)), rng.normal(size=(items, 2))
    texts = (
        np.concatenate([10 * rng.normal(size=(items, 20)), quality], axis=1)
        @ np.linalg.qr(rng.normal(size=(22, 22)))[0]
    )
    user, item = rng.integers(0, users, events), rng.integers(0, items, events)
    label = rng.random(events) < 1 / (1 + np.exp(-2 * (taste[user] * quality[item]).sum(1)))
    samples = Samples(
        users=np.arange(users), items=np.arange(items), category=np.zeros(items), categories=(), user=user, item=item,
        ts=np.arange(events), label=label.astype(np.float32), liked=np.zeros((events, 1)),
        disliked=np.zeros((events, 1)), user_row=np.full(events, -1), item_row=item,
    )  # fmt: skip
    known = Interactions.fit(samples, np.ones(events, bool), rank=2)
    norm, explained = reduction(known, "item", texts, item, 2, 0.5)
    out = (texts - norm.mean.numpy()) @ norm.projection.numpy()

    def told(columns: np.ndarray) -> float:
        fitted = columns @ np.linalg.lstsq(columns, quality - quality.mean(axis=0), rcond=None)[0]
        return float(1 - ((quality - quality.mean(axis=0) - fitted) ** 2).sum() / (quality**2).sum())

    assert norm.out_dim == 5
    assert told(out[:, 1:3]) > 0.8 > 0.1 > told(out[:, 3:])
    assert (explained[1:] > 0.5).all()


def test_labels_after_training_do_not_move_the_norm(world: World) -> None:
    samples = world.samples
    train = samples.ts < np.quantile(samples.ts, 0.8)
    flipped = replace(samples, label=np.where(train, samples.label, 1 - samples.label))
    made = [
        reduction(Interactions.fit(s, train, 4), "item", world.item_vectors, s.item_row[train], 8, 0.25)[0].projection
        for s in (samples, flipped)
    ]
    np.testing.assert_array_equal(*(m.numpy() for m in made))
