"""Texts that are not an entity's own: dealt to others, wrong in part, or no texts at all."""

import numpy as np

from warehouse.errors import InputError


def deal_to_others(entity: np.ndarray, row: np.ndarray, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Text vectors [rows, d] in which every entity holds another's: entities are put in a random ring and each takes
    those of the next, in order of time.

    `entity` and `row` [n] say which entity holds which row (-1: none), as samples do; an entity's rows are in order of
    time. It takes the other's first, second, ... row for its own, and the other's last for any beyond. So an entity's
    vectors still belong together and are real texts, only not its own. Rows that no sample holds stay.

    Raises InputError when fewer than two entities hold rows.
    """
    held = row >= 0
    rows, first = np.unique(row[held], return_index=True)
    owner = entity[held][first]
    rows = rows[np.lexsort((rows, owner))]
    owners, start, count = np.unique(np.sort(owner), return_index=True, return_counts=True)
    if len(owners) == 1:
        raise InputError("Knowledge of a single entity cannot be shuffled. Give more, or leave out the shuffled arm.")
    ring = rng.permutation(len(owners))
    giver = np.empty(len(owners), dtype=np.int64)
    giver[ring] = np.roll(ring, -1)
    taker = np.repeat(np.arange(len(owners)), count)
    place = np.arange(len(rows)) - start[taker]
    source = rows[start[giver[taker]] + np.minimum(place, count[giver[taker]] - 1)]
    dealt: np.ndarray = vectors.copy()
    dealt[rows] = vectors[source]
    return dealt


def deal_in_part(entity: np.ndarray, vectors: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Vectors [rows, d] of which a random `share` of the entities hold another's, dealt among themselves.

    `entity` [rows] says whose each row is. Fewer than two entities to deal among change nothing.
    """
    owners = np.unique(entity)
    wrong = rng.permutation(owners)[: round(share * len(owners))]
    if len(wrong) < 2:
        return vectors
    rows = np.where(np.isin(entity, wrong), np.arange(len(entity)), -1)
    return deal_to_others(entity, rows, vectors, rng)


def draw_vectors(entity: np.ndarray, vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian vectors in place of `vectors` [rows, d], one per entity, with the mean and spread of the true ones."""
    owners, code = np.unique(entity, return_inverse=True)
    noise = rng.normal(size=(len(owners), vectors.shape[1]))[code]
    drawn: np.ndarray = (vectors.mean(axis=0) + noise * vectors.std(axis=0)).astype(vectors.dtype)
    return drawn
