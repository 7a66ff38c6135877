"""Which items stand for a group in its prompt: few, chosen so that as many members as possible are in them.

Both rules are greedy maximisation of a monotone submodular function, at least 1 - 1/e of the best choice of as many
items (Nemhauser, Wolsey and Fisher, 1978).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from augment.groups.events import Codes

Floats = NDArray[np.float32]


def covering_items(user: Codes, item: Codes, most: int) -> list[int]:
    """Up to `most` items for a group of users with pairs (user [n], item [n]): greedy maximum coverage.

    An item covers the users it has a pair with; the next item is the one that covers most users not covered yet, among
    equals the one with most users at all, then the first. When no item covers another user, all count as not covered
    again, so that a second item for everyone follows the first. Each step counts all pairs anew: a group has a few
    thousand, which is quicker than keeping a queue.
    """
    codes, column = np.unique(item, return_inverse=True)
    members, row = np.unique(user, return_inverse=True)
    popularity = np.bincount(column, minlength=len(codes))
    free = np.ones(len(codes), bool)
    waiting = np.ones(len(members), bool)
    chosen: list[int] = []
    while len(chosen) < min(most, len(codes)):
        gain = np.bincount(column[waiting[row]], minlength=len(codes)) * free
        if not gain.any():
            waiting[:] = True
            continue
        # No popularity reaches len(members) + 1, so it only decides among equal gains.
        best = int(np.argmax(gain * (len(members) + 1) + popularity * free))
        free[best] = False
        waiting[row[column == best]] = False
        chosen.append(int(codes[best]))
    return chosen


def covered_share(user: Codes, item: Codes, chosen: list[int]) -> float:
    """Share of the users in the pairs (user, item) that have a pair with one of the `chosen` items."""
    return len(np.unique(user[np.isin(item, chosen)])) / len(np.unique(user))


def central_items(vectors: Floats, most: int) -> list[int]:
    """Up to `most` rows of `vectors` [n, d] that stand for all of them: greedy facility location.

    The next row is the one that adds most to the sum, over all rows, of the similarity to the nearest chosen one (dot
    product, no less than zero); among equals the first.
    """
    similarity = np.maximum(vectors @ vectors.T, 0)
    reached = np.zeros(len(vectors), np.float32)
    free = np.ones(len(vectors), bool)
    chosen: list[int] = []
    while len(chosen) < min(most, len(vectors)):
        gain = np.maximum(similarity - reached[:, None], 0).sum(axis=0)
        best = int(np.argmax(np.where(free, gain, -1)))
        free[best] = False
        reached = np.maximum(reached, similarity[:, best])
        chosen.append(best)
    return chosen


def in_proportion(lists: Sequence[Sequence[str]], sizes: Sequence[int], most: int) -> list[str]:
    """Up to `most` different entries of `lists`, of each in its order and about as many as its share of `sizes`.

    The next is from the list with the highest size / (entries taken + 1), among equals the first (D'Hondt's rule).
    """
    taken = [0] * len(lists)
    chosen: dict[str, None] = {}
    while len(chosen) < most:
        left = [number for number, entries in enumerate(lists) if taken[number] < len(entries)]
        if not left:
            break
        number = max(left, key=lambda number: (sizes[number] / (taken[number] + 1), -number))
        chosen[lists[number][taken[number]]] = None
        taken[number] += 1
    return list(chosen)
