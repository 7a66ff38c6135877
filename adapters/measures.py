"""AUC, log loss, and what a difference of them is worth: a paired bootstrap over users."""

import numpy as np


def auc(label: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve, ties counted half; nan when a class is absent.

    Equals P(score+ > score-) + P(score+ = score-)/2 over pairs weighted by the product of their weights.
    """
    order = np.argsort(score, kind="stable")
    return auc_ordered(
        label[order], score_starts(score[order]), np.ones(len(order)) if weight is None else weight[order]
    )


def score_starts(ordered: np.ndarray) -> np.ndarray:
    """Where each distinct score begins in scores already in order."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])


def auc_ordered(label: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> float:
    """`auc` of rows already in order of score, `starts` being where each distinct score begins."""
    if len(label) == 0:
        return float("nan")
    positive = np.add.reduceat(weight * label, starts)
    negative = np.add.reduceat(weight * (1 - label), starts)
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


def logloss(label: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log likelihood in nats; nan for no rows. Probabilities are kept 1e-7 away from 0 and 1."""
    if len(label) == 0:
        return float("nan")
    p = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    return float(-np.mean(np.where(label > 0, np.log(p), np.log1p(-p))))


def bootstrap_auc_difference(
    label: np.ndarray, first: np.ndarray, second: np.ndarray, user: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """AUC(second) - AUC(first) in `draws` resamples of users, [draws]; both models see the same resample.

    `first` and `second` are scores [seeds, n] of the same samples, compared seed by seed and averaged over seeds;
    `user` [n] are codes. A resample weighs each sample by how often its user was drawn. One that lacks a class is nan.
    """
    _, codes = np.unique(user, return_inverse=True)
    users = int(codes.max()) + 1 if len(codes) else 0
    if users == 0:
        return np.full(draws, np.nan)
    prepared = [(_ordered(label, a), _ordered(label, b)) for a, b in zip(first, second, strict=True)]
    rng = np.random.default_rng(seed)
    differences = np.empty(draws)
    for draw in range(draws):
        weight = np.bincount(rng.integers(0, users, users), minlength=users)[codes].astype(np.float64)
        differences[draw] = np.mean([_weighted(b, weight) - _weighted(a, weight) for a, b in prepared])
    return differences


def _ordered(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `auc_ordered` needs of one model, made once for all resamples."""
    order = np.argsort(score, kind="stable")
    return order, label[order], score_starts(score[order])


def _weighted(model: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray) -> float:
    order, label, starts = model
    return auc_ordered(label, starts, weight[order])
