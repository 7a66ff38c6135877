"""Hierarchical clustering into groups of bounded size: a node with too many members is cut in two, from the top down.

A cut is 2-means (squared Euclidean distance) from a start without chance: the two sides of the mean along the direction
of the largest variance (Boley's PDDP, 1998), which Lloyd's iterations then improve. Members stand in order of
|x - a|^2 - |x - b|^2, their distances to the two means, and are parted where it changes its sign, or as near to that as
both sides keep `min_size` members; equal members are cut in half. REKI's own groups come from a binary tree too (by
their names, StreaKHC's), which bounds them from above alone: a seventh of its groups of items have one member.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

# Enough for the direction to settle where one dominates; where none does, any will do.
_POWER_STEPS = 8
# Most cuts settle in ten; past that a few members change sides.
_LLOYD_STEPS = 20
# Neither side of a cut has less than this share: outliers that leave a large node few at a time would make the tree as
# deep as there are outliers. On MovieLens-1M this changes one cut of 250; at a quarter, groups begin to fit less well.
_SMALLEST_SHARE = 1 / 8


@dataclass(frozen=True)
class Tree:
    """Nodes from the top down, a parent before its children; node 0 is the root and holds all.

    parent [nodes] (-1 for the root), size [nodes], centroid [nodes, d]: the mean of the members. leaf [points]: the
    node without children that a point is in.
    """

    parent: Places
    size: Places
    centroid: Floats
    leaf: Places

    @property
    def leaves(self) -> Places:
        """The nodes without children, in order."""
        return np.setdiff1d(np.arange(len(self.parent)), self.parent)


def cluster(points: Floats, max_size: int, min_size: int) -> Tree:
    """A tree over `points` [n, d] whose leaves have `min_size` to `max_size` members each; n < min_size makes one leaf.

    `max_size` is at least twice `min_size`. Equal points are told apart by their places, so callers put them in an
    order that means something. Memory: two copies of `points`.
    """
    assert max_size >= 2 * min_size >= 2
    count, width = points.shape
    middle = points.mean(axis=0, dtype=np.float64) if count else np.zeros(width)
    # Features lie in a narrow cone; about its middle, float32 has its digits for the differences.
    held = (points - middle).astype(np.float32)
    place = np.arange(count)
    leaf = np.zeros(count, np.int64)
    parents: list[int] = []
    sizes: list[int] = []
    centroids: list[NDArray[np.float64]] = []
    waiting = [(0, count, -1)] if count else []
    while waiting:
        start, stop, parent = waiting.pop()
        node, size = len(parents), stop - start
        parents.append(parent)
        sizes.append(size)
        centroids.append(held[start:stop].mean(axis=0, dtype=np.float64) + middle)
        if size <= max_size:
            leaf[place[start:stop]] = node
            continue
        margin = _margins(held[start:stop])
        # Equal members stand by their places, so that nothing depends on how earlier cuts left them.
        order = np.lexsort((place[start:stop], margin))
        held[start:stop] = held[start:stop][order]
        place[start:stop] = place[start:stop][order]
        least = max(min_size, int(size * _SMALLEST_SHARE))
        natural = int((margin < 0).sum()) if margin.any() else size // 2
        cut = start + min(max(natural, least), size - least)
        waiting += [(cut, stop, node), (start, cut, node)]
    centroid = np.array(centroids).reshape(len(parents), width).astype(np.float32)
    return Tree(np.array(parents, np.int64), np.array(sizes, np.int64), centroid, leaf)


def nearest(vectors: Floats, centroids: Floats, block_rows: int = 8192) -> Places:
    """The row of `centroids` [m, d] that each of `vectors` [n, d] is nearest to, the first among equals; [n].

    -1 for a vector of zeros: nothing is known of what it stands for.
    """
    found = np.full(len(vectors), -1, np.int64)
    half = (centroids.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    for start in range(0, len(vectors), block_rows):
        block = vectors[start : start + block_rows]
        chosen = np.argmin(half - block @ centroids.T, axis=1)
        found[start : start + block_rows] = np.where(block.any(axis=1), chosen, -1)
    return found


def _margins(points: Floats) -> Floats:
    """How much nearer each point is to the second of two means than to the first, below zero for the first's; [n].

    Up to a factor: |x - a|^2 - |x - b|^2 = 2 (b - a)'x - (|b|^2 - |a|^2). Zero for all where all points are equal.
    """
    count = np.float32(len(points))
    total = points.sum(axis=0)
    direction = _main_direction(points, total / count)
    along = points @ direction
    margin = along - along.mean()
    second = margin > 0
    for _ in range(_LLOYD_STEPS):
        members = np.float32(second.sum())
        if members in (0, count):
            return np.zeros(len(points), np.float32)
        b = second.astype(np.float32) @ points
        a = (total - b) / (count - members)
        b /= members
        margin = points @ (b - a) - (b - a) @ (a + b) / 2
        moved = margin > 0
        if np.array_equal(moved, second):
            break
        second = moved
    return np.asarray(margin, np.float32)


def _main_direction(points: Floats, middle: Floats) -> Floats:
    """The direction of largest variance by power iteration, from the point that is furthest from the middle; [d]."""
    distance = np.einsum("nd,nd->n", points, points) - 2 * (points @ middle)
    direction = points[np.argmax(distance)] - middle
    for _ in range(_POWER_STEPS):
        length = np.linalg.norm(direction)
        if length == 0:
            break
        direction = direction / length
        along = points @ direction
        direction = (along - along.mean()) @ points
    return np.asarray(direction, np.float32)
