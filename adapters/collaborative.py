"""What interactions say of users and items, and of it what their texts foretell: a supervised reduction of texts.

The largest principal components of text vectors are what texts differ in, not what users choose by. Ridge regression of
collaborative factors on the texts finds directions that matter for choices with as few entities as there are, because
each factor is one closed-form fit over entities, where a network sees the same few entities again in every event and
learns them by heart.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from scipy.sparse import coo_array

from adapters.samples import Samples
from adapters.whitening import InputNorm

Side = Literal["user", "item"]

# Pseudo-events that draw means of few events to the overall ones.
USER_SHRINK, ITEM_SHRINK, FACTOR_SHRINK = 5.0, 10.0, 20.0
FOLDS = 10
# Ridge penalties, as multiples of the mean weighted variance of the texts' numbers.
PENALTIES = np.logspace(-4, 2, 13)


@dataclass(frozen=True)
class Interactions:
    """Factors of the training interactions, and what each training sample says beyond the means of its two sides.

    e_s = y_s - m - b_u - b_i, with m the mean label and b shrunken mean residuals of user and item;
    M = D_u^(-1/2) E D_i^(-1/2) ~ U S V', with E the sums of e per pair and D the number of samples + FACTOR_SHRINK.

    `users` [users, rank] = U S^(1/2) and `items` [items, rank] = V S^(1/2): their dot product is what others' tastes
    say of a pair. Zero without training samples, as are columns beyond the rank of M. Per training sample [n]: its
    `user`, its `item`, and what is left of y - m without the bias of the user (`of_item`), of the item (`of_user`), of
    both (`of_pair`).
    """

    users: np.ndarray
    items: np.ndarray
    user: np.ndarray
    item: np.ndarray
    of_item: np.ndarray
    of_user: np.ndarray
    of_pair: np.ndarray

    @classmethod
    def fit(cls, samples: Samples, train: np.ndarray, rank: int, seed: int = 0) -> Self:
        """The factors of the samples in the mask `train` [n], by a randomised truncated SVD."""
        # Most runs fit nothing, and need not wait for the second that it takes to load.
        from sklearn.utils.extmath import randomized_svd

        rows = np.flatnonzero(train)
        user, item = samples.user[rows], samples.item[rows]
        shape = len(samples.users), len(samples.items)
        counts = [np.bincount(code, minlength=n) for code, n in zip((user, item), shape, strict=True)]
        centred = samples.label[rows].astype(np.float64)
        centred -= centred.mean() if len(rows) else 0.0
        user_bias = np.bincount(user, weights=centred, minlength=shape[0]) / (counts[0] + USER_SHRINK)
        of_item = centred - user_bias[user]
        item_bias = np.bincount(item, weights=of_item, minlength=shape[1]) / (counts[1] + ITEM_SHRINK)
        of_pair = of_item - item_bias[item]
        scales = [np.sqrt(count + FACTOR_SHRINK) for count in counts]
        matrix = coo_array((of_pair / (scales[0][user] * scales[1][item]), (user, item)), shape=shape).tocsr()
        size = min(rank, *shape)
        left, values, right = randomized_svd(matrix, n_components=size, random_state=seed)
        factors = []
        for side, count in ((left, counts[0]), (right.T, counts[1])):
            padded = np.zeros((len(count), rank))
            padded[:, :size] = np.where(count[:, None] > 0, side * np.sqrt(values), 0.0)
            factors.append(padded)
        return cls(
            users=factors[0],
            items=factors[1],
            user=user,
            item=item,
            of_item=of_item,
            of_user=centred - item_bias[item],
            of_pair=of_pair,
        )

    def targets(self, side: Side, row: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """What the training samples that read each of `count` text rows say of its owner, [count, 1 + rank], and
        how much that is to be trusted, [count] in 0..1.

        `row` [n] is the text row that each training sample reads, -1 for none. For row r, read by samples s, with p(s)
        the other side's factors, times D^(1/2) and at unit mean square over the training samples:

            t_0 = sum (y_s - m - b_other(s)) / (count_r + FACTOR_SHRINK)
            t_k = sum e_s p_k(s) / (count_r + FACTOR_SHRINK)
            trust = count_r / (count_r + FACTOR_SHRINK)
        """
        used = np.flatnonzero(row >= 0)
        read = row[used]
        other, factors = (self.user, self.users) if side == "item" else (self.item, self.items)
        root = np.sqrt(np.bincount(other, minlength=len(factors)) + FACTOR_SHRINK)
        factors = factors * root[:, None]
        square = np.mean(factors[other] ** 2, axis=0) if len(other) else np.ones(factors.shape[1])
        factors = factors / np.sqrt(np.where(square > 0, square, 1.0))
        alone = (self.of_item if side == "item" else self.of_user)[used]
        pair, loading = self.of_pair[used], factors[other[used]]
        sums = [np.bincount(read, weights=alone, minlength=count)]
        sums += [np.bincount(read, weights=pair * column, minlength=count) for column in loading.T]
        events = np.bincount(read, minlength=count)
        weight = events + FACTOR_SHRINK
        return np.stack(sums, axis=1) / weight[:, None], events / weight


def reduction(
    known: Interactions | None,
    side: Side,
    vectors: np.ndarray,
    row: np.ndarray,
    components: int,
    power: float,
    seed: int = 0,
) -> tuple[InputNorm, np.ndarray]:
    """The norm of one side's text vectors [n, d], fitted on those that training samples read, and the R^2 of its
    collaborative directions, with which its outputs begin where `known` interactions are given.

    `row` [n] is the vector that each training sample reads, -1 for none; `components` principal components are whitened
    by `power`. Raises InputError when no training sample has a vector.
    """
    assert known is not None or components, "a norm without outputs"
    read = np.unique(row)
    read = read[read >= 0]
    fitted = vectors[read].astype(np.float32, copy=False)
    norm = InputNorm.whiten(fitted, components, power)
    if known is None:
        return norm, np.zeros(0)
    targets, trust = known.targets(side, row, len(vectors))
    # All texts of one user are in one fold. A group's text has many owners, of whom one will do.
    owner = np.zeros(len(vectors), dtype=np.int64)
    owner[row[row >= 0]] = (known.user if side == "user" else known.item)[row >= 0]
    projection, explained = foretelling(fitted, targets[read], trust[read], owner[read], seed)
    return norm.beside(projection), explained


def foretelling(
    vectors: np.ndarray, targets: np.ndarray, trust: np.ndarray, entity: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The ridge regression of `targets` [n, k] on `vectors` [n, d], as a projection [d, k] and the R^2 [k] of each.

    min over W of sum_r trust_r |t_r - (x_r - mean x) W|^2 + penalty |W|^2, with the penalty of each target chosen by
    the R^2 in cross-validation, whose folds hold all rows of an `entity` [n] together. A column is scaled so that its
    outputs vary by its R^2 and the columns' mean variance is 1; one that foretells nothing is zero.
    """
    count, dim = vectors.shape
    projection, explained = np.zeros((dim, targets.shape[1])), np.zeros(targets.shape[1])
    codes, place = np.unique(entity, return_inverse=True)
    folds = min(FOLDS, len(codes))
    if folds < 2 or not trust.any():
        return projection, explained
    x = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    t = targets - (trust @ targets) / trust.sum()
    fold = np.random.default_rng(seed).permutation(len(codes))[place] % folds
    grams, products = np.zeros((folds, dim, dim)), np.zeros((folds, dim, targets.shape[1]))
    for f in range(folds):
        rows = np.flatnonzero(fold == f)
        weighed = x[rows] * trust[rows, None]
        grams[f], products[f] = weighed.T @ x[rows], weighed.T @ t[rows]
    gram, product = grams.sum(axis=0), products.sum(axis=0)
    penalties = PENALTIES * max(float(np.trace(gram)) / dim, np.finfo(np.float64).tiny)
    missed = np.zeros((len(penalties), targets.shape[1]))
    for f in range(folds):
        solve = _Ridge(gram - grams[f], product - products[f])
        for at, penalty in enumerate(penalties):
            weights = solve(penalty)
            # The squared error of the fold, out of its moments; the part without the weights is added below.
            missed[at] += ((grams[f] @ weights - 2 * products[f]) * weights).sum(axis=0)
    total = trust @ t**2
    r2 = -missed / np.where(total > 0, total, 1.0)
    best = r2.argmax(axis=0)
    explained = np.maximum(r2[best, np.arange(len(best))], 0.0)
    solve = _Ridge(gram, product)
    for at in np.unique(best):
        chosen = (best == at) & (explained > 0)
        projection[:, chosen] = solve(penalties[at])[:, chosen]
    spread = np.sqrt(np.einsum("dk,de,ek->k", projection, x.T @ x / count, projection))
    usable = spread > 0
    scale = np.sqrt(explained[usable] / explained[usable].mean())
    projection[:, usable] *= scale / spread[usable]
    projection[:, ~usable] = 0.0
    return projection, explained


class _Ridge:
    """Solutions of (gram + penalty) W = product for many penalties out of one decomposition."""

    def __init__(self, gram: np.ndarray, product: np.ndarray) -> None:
        self._values, self._vectors = np.linalg.eigh(gram)
        self._rotated = self._vectors.T @ product

    def __call__(self, penalty: float) -> np.ndarray:
        solved: np.ndarray = self._vectors @ (self._rotated / (np.maximum(self._values, 0.0) + penalty)[:, None])
        return solved
