"""AUC over all and within users, log loss, calibration, and what a difference of them is worth: a paired bootstrap
over users."""

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


def user_aucs(label: np.ndarray, score: np.ndarray, user: np.ndarray, users: int) -> np.ndarray:
    """AUC within each user's samples, [users], nan for a user without both classes. `user` [n] are codes."""
    order = np.lexsort((score, user))
    label, score, user = label[order].astype(np.float64), score[order], user[order]
    aucs = np.full(users, np.nan)
    if len(order) == 0:
        return aucs
    # Samples of one user and score are tied: one group.
    starts = np.flatnonzero(np.append(True, (user[1:] != user[:-1]) | (score[1:] != score[:-1])))
    positive, negative = np.add.reduceat(label, starts), np.add.reduceat(1 - label, starts)
    owner = user[starts]
    first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    all_below = np.cumsum(negative) - negative
    below = all_below - np.repeat(all_below[first], np.diff(np.append(first, len(owner))))
    won = np.add.reduceat(positive * (below + negative / 2), first)
    pairs = np.add.reduceat(positive, first) * np.add.reduceat(negative, first)
    aucs[owner[first]] = np.divide(won, pairs, out=np.full(len(first), np.nan), where=pairs > 0)
    return aucs


def gauc(label: np.ndarray, score: np.ndarray, user: np.ndarray) -> float:
    """AUC within users, averaged by their numbers of samples; users without both classes do not count. nan for none."""
    _, codes = np.unique(user, return_inverse=True)
    aucs = user_aucs(label, score, codes, int(codes.max()) + 1 if len(codes) else 0)
    weight = np.bincount(codes, minlength=len(aucs)) * np.isfinite(aucs)
    return float(np.nansum(aucs * weight) / weight.sum()) if weight.sum() else float("nan")


def calibration_error(label: np.ndarray, probability: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error: |mean label - mean probability| per bin of equal numbers, averaged by their numbers.

    nan for no rows.
    """
    if len(label) == 0:
        return float("nan")
    parts = np.array_split(np.argsort(probability, kind="stable"), min(bins, len(label)))
    gaps = [abs(float(label[p].mean(dtype=np.float64) - probability[p].mean(dtype=np.float64))) for p in parts]
    return float(np.average(gaps, weights=[len(p) for p in parts]))


def resample_users(users: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `users` is drawn, in `draws` resamples of as many. int64 [draws, users]."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((draws, users), dtype=np.int64)
    for draw in range(draws):
        drawn[draw] = np.bincount(rng.integers(0, users, users), minlength=users)
    return drawn


def resampled_aucs(label: np.ndarray, score: np.ndarray, user: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """AUC in each resample, [draws]; a sample weighs as often as its user was drawn. nan where a class is absent.

    `user` [n] are codes that index the columns of `drawn` [draws, users].
    """
    order, ordered, starts = _ordered(label, score)
    user = user[order]
    return np.array([auc_ordered(ordered, starts, weights[user].astype(np.float64)) for weights in drawn])


def bootstrap_auc_difference(
    label: np.ndarray, first: np.ndarray, second: np.ndarray, user: np.ndarray, *, draws: int, seed: int
) -> np.ndarray:
    """AUC(second) - AUC(first) in `draws` resamples of users, [draws]; both models see the same resample.

    `first` and `second` are scores [seeds, n] of the same samples, compared seed by seed and averaged over seeds;
    `user` [n] are codes. A resample that lacks a class is nan.
    """
    _, codes = np.unique(user, return_inverse=True)
    if len(codes) == 0:
        return np.full(draws, np.nan)
    drawn = resample_users(int(codes.max()) + 1, draws, seed)
    pairs = [
        resampled_aucs(label, b, codes, drawn) - resampled_aucs(label, a, codes, drawn)
        for a, b in zip(first, second, strict=True)
    ]
    return np.asarray(np.mean(pairs, axis=0))


def _ordered(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `auc_ordered` needs of one model, made once for all resamples."""
    order = np.argsort(score, kind="stable")
    return order, label[order], score_starts(score[order])
