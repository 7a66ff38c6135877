"""Features of items and users, on which they are grouped (REKI does not say which it uses; these are our choice).

Items. R is the user x item matrix, 1 where a user has a positive event with an item. It is weighted on both sides,

    X = (D_u + t_u I)^(-1/2)  R  (D_i + t_i I)^(-1/2)

with D the degrees and t their means: without t, the first singular vectors of a sparse matrix are its smallest
isolated pieces (Qin and Rohe, 2013; Rohe, Qin and Yu, 2016, whose di-sim this is on the items' side). Of the truncated
SVD X ~ U S V' an item's co-occurrence factor is its row of V S at unit length. It is zero without a positive event, and
where only vectors that were cut off tell of the item, as may be of small circles apart from all others. Its text vector
comes from an encoder, at unit length as well, and zero where it has no text. Its feature is both, side by side,
weighted so that their squared lengths are 1 - text_weight and text_weight.

Users. The feature on positive events is the mean of the features of the items in them, each item once, at unit length;
the same on negative events. It needs nothing but the items' features: a user who comes after a clustering gets, by the
same formula, the very vector that the same events would have had in it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from augment.groups.config import GroupsConfig
from augment.groups.events import EventLog, Pairs, UserActivity, parts, sample
from warehouse.errors import UsageError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float32]

# A vector shorter than this share of its terms is what rounding left of them, and its direction is chance.
_ROUNDING = 1e-5

# Of the subspace iteration: directions beyond those asked for, and steps, which make these as good as exact.
_SPARE = 16
_SUBSPACE_STEPS = 8


@dataclass(frozen=True)
class UserFeatures:
    """Users with a feature, row by row: who they are, and `vectors` [n, d] at unit length.

    `without` counts users who have events of the sign, and no feature: nothing is known of any item in them.
    """

    activity: UserActivity
    vectors: Floats
    without: int


@dataclass(frozen=True)
class ClusterFeatures:
    """What a clustering sees: `items` [items of the log, d], zero without a feature; users on events of either sign."""

    items: Floats
    likes: UserFeatures
    dislikes: UserFeatures


def cluster_features(log: EventLog, text: Floats | None, config: GroupsConfig) -> ClusterFeatures:
    """Features of the log's items and users; `text` [items, t] has a row per item of the log, zero for none.

    Raises UsageError where the features need texts and there are none, or not one per item.
    """
    likes, dislikes = log.activity(True), log.activity(False)
    items = _item_features(log, likes, text, config)
    return ClusterFeatures(
        items,
        user_features(log, True, likes, items, config.max_events),
        user_features(log, False, dislikes, items, config.max_events),
    )


def _item_features(log: EventLog, likes: UserActivity, text: Floats | None, config: GroupsConfig) -> Floats:
    """Features of the log's items [items, d], a zero row for an item without any."""
    blocks = []
    if config.uses_events:
        factors = cooccurrence_factors(log.pairs(True, sample(likes, config.max_events)), config.rank, config.seed)
        blocks.append(factors * np.float32(np.sqrt(1 - config.text_weight) if config.uses_text else 1))
    if config.uses_text:
        if text is None or len(text) != len(log.items):
            raise UsageError(
                f"groups.features = {config.features!r} needs a text vector for each of {len(log.items)} items, and "
                f'there are {0 if text is None else len(text)}. Give one per item, or set features = "cooccurrence".'
            )
        blocks.append(text_features(text, config))
    return np.concatenate(blocks, axis=1)


def text_features(text: Floats, config: GroupsConfig) -> Floats:
    """The text's share of item features [items, t], which is all that a later item has."""
    return unit_rows(text) * np.float32(np.sqrt(config.text_weight) if config.uses_events else 1)


def cooccurrence_factors(pairs: Pairs, rank: int, seed: int) -> Floats:
    """Rows of V S of the weighted matrix at unit length, [items, r]; r is `rank`, or less in a matrix without so many.

    The sign of each singular vector is that of its largest number.
    """
    from scipy.sparse import csr_matrix

    if not len(pairs.item):
        return np.zeros((pairs.items, 0), np.float32)
    of_user, of_item = (np.bincount(codes) for codes in (pairs.user, pairs.item))
    user_weight, item_weight = (1 / np.sqrt(degree + degree[degree > 0].mean()) for degree in (of_user, of_item))
    # Items without a positive event have no row in V; computed, theirs would be rounding errors.
    met = np.flatnonzero(of_item)
    column = np.cumsum(of_item > 0, dtype=np.int32)[pairs.item] - 1
    weights = user_weight[pairs.user] * item_weight[pairs.item]
    matrix = csr_matrix((weights, (pairs.user, column)), shape=(len(of_user), len(met)))
    factors = _scaled_right_vectors(matrix, rank, seed)
    signs = np.sign(factors[np.argmax(np.abs(factors), axis=0), np.arange(factors.shape[1])])
    lengths = np.linalg.norm(factors, axis=1, keepdims=True)
    known = lengths > _ROUNDING * lengths.max()
    found = np.zeros((pairs.items, factors.shape[1]), np.float32)
    found[met] = np.where(known, factors * signs / np.where(known, lengths, 1), 0)
    return found


def _scaled_right_vectors(matrix: "csr_matrix", rank: int, seed: int) -> NDArray[np.float64]:
    """V S [columns, r], largest singular values first, by subspace iteration (Halko, Martinsson and Tropp, 2011).

    Not scipy's `svds`: where singular values are equal, ARPACK starts anew at random, whatever start it was given.
    """
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], min(rank + _SPARE, *matrix.shape)))
    for _ in range(_SUBSPACE_STEPS):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    image = matrix @ basis
    squares, turn = np.linalg.eigh(image.T @ image)
    scaled: NDArray[np.float64] = (basis @ turn) * np.sqrt(np.maximum(squares, 0))
    return scaled[:, ::-1][:, :rank]


def user_features(log: EventLog, positive: bool, users: UserActivity, items: Floats, max_events: int) -> UserFeatures:
    """Features of `users` on their events of one sign, `max_events` at once, from those of the log's `items`."""
    vectors = np.empty((len(users), items.shape[1]), np.float32)
    for part in parts(users.events, max_events):
        vectors[part] = mean_features(log.pairs(positive, users.ids[part]), items)
    known = np.flatnonzero(vectors.any(axis=1))
    if len(known) == len(users):
        return UserFeatures(users, vectors, 0)
    return UserFeatures(users.take(known), vectors[known], len(users) - len(known))


def mean_features(pairs: Pairs, items: Floats) -> Floats:
    """Mean of the features of each user's items at unit length, [users, d]; zero where it is zero."""
    from scipy.sparse import csr_matrix

    shape = (pairs.users, pairs.items)
    share = 1 / np.bincount(pairs.user, minlength=pairs.users).astype(np.float32)[pairs.user]
    means: Floats = csr_matrix((share, (pairs.user, pairs.item)), shape=shape) @ items
    return unit_rows(means)


def unit_rows(vectors: Floats) -> Floats:
    """The rows at unit length [n, d]; what is zero but for rounding, zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths > _ROUNDING
    rows: Floats = np.where(known, vectors / np.where(known, lengths, 1), 0).astype(np.float32)
    return rows
