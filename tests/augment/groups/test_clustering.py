"""The tree: sizes within limits whatever the points, every point in one leaf, and clear clusters left whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from augment.groups.clustering import Tree, cluster, nearest

untimed = settings(deadline=None)

# Whole numbers, so that many points are equal; and anything that a float can be.
points = st.one_of(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(-2, 2)),
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=70),
        elements=st.floats(-1000, 1000, width=32),
        fill=st.floats(-1, 1, width=32),
    ),
)
limits = st.integers(1, 6).flatmap(lambda least: st.tuples(st.integers(2 * least, 20), st.just(least)))


def members_below(tree: Tree, node: int) -> int:
    """The slow way to a node's size: those in its leaves, counted down the tree."""
    children = np.flatnonzero(tree.parent == node)
    return sum(members_below(tree, child) for child in children) if len(children) else int((tree.leaf == node).sum())


@untimed
@given(points, limits)
def test_leaves_are_within_the_limits_and_hold_every_point_once(found: np.ndarray, limit: tuple[int, int]) -> None:
    most, least = limit
    tree = cluster(found, most, least)
    leaves = tree.leaves
    assert len(tree.leaf) == len(found)
    assert set(tree.leaf.tolist()) == set(leaves.tolist())
    sizes = tree.size[leaves]
    assert sizes.sum() == len(found)
    assert (sizes <= most).all()
    assert (sizes >= min(least, len(found))).all()
    for leaf in leaves:
        np.testing.assert_allclose(tree.centroid[leaf], found[tree.leaf == leaf].mean(axis=0), atol=1e-2, rtol=1e-4)


@untimed
@given(points, limits)
def test_the_sizes_of_the_tree_add_up(found: np.ndarray, limit: tuple[int, int]) -> None:
    tree = cluster(found, *limit)
    assert tree.parent[0] == -1
    assert (tree.parent[1:] < np.arange(1, len(tree.parent))).all()
    assert tree.size.tolist() == [members_below(tree, node) for node in range(len(tree.parent))]
    assert set(np.bincount(tree.parent[1:], minlength=1).tolist()) <= {0, 2}


@untimed
@given(points, limits)
def test_the_same_points_make_the_same_tree(found: np.ndarray, limit: tuple[int, int]) -> None:
    one, other = cluster(found, *limit), cluster(found.copy(), *limit)
    assert np.array_equal(one.leaf, other.leaf)
    assert np.array_equal(one.centroid, other.centroid)


def test_equal_points_are_cut_in_half_by_their_places() -> None:
    tree = cluster(np.ones((40, 3), np.float32), 10, 2)
    assert tree.size[tree.leaves].tolist() == [10, 10, 10, 10]
    assert np.array_equal(tree.leaf, np.repeat(tree.leaves, 10))


def test_fewer_points_than_a_group_needs_are_one_group_and_none_are_none() -> None:
    assert cluster(np.eye(3, dtype=np.float32), 10, 5).size.tolist() == [3]
    nobody = cluster(np.zeros((0, 4), np.float32), 10, 5)
    assert (len(nobody.leaves), nobody.centroid.shape) == (0, (0, 4))


def test_outliers_do_not_make_the_tree_as_deep_as_there_are_of_them() -> None:
    # Each far along an axis of its own, so that the best cut in two always leaves one of them alone.
    far = np.diag(np.linspace(50, 100, 100))
    tree = cluster(np.concatenate([np.zeros((1000, 100)), far]).astype(np.float32), 10, 1)
    depth = np.zeros(len(tree.parent), int)
    for node in range(1, len(depth)):
        depth[node] = depth[tree.parent[node]] + 1
    assert depth.max() <= 40


@pytest.mark.parametrize("seed", range(6))
def test_clear_clusters_stay_whole_and_their_members_come_back_to_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = 10 * random.standard_normal((6, 8))
    truth = random.permutation(np.repeat(np.arange(6), [8, 9, 9, 10, 11, 12]))
    found = (centres[truth] + 0.1 * random.standard_normal((len(truth), 8))).astype(np.float32)
    tree = cluster(found, 14, 4)
    assert len({(t, leaf) for t, leaf in zip(truth.tolist(), tree.leaf.tolist(), strict=True)}) == 6
    assert np.array_equal(tree.leaves[nearest(found, tree.centroid[tree.leaves])], tree.leaf)


@untimed
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))
def test_the_nearest_centroid_is_that_of_a_plain_loop(seed: int, vectors: int, centroids: int, block: int) -> None:
    random = np.random.default_rng(seed)
    some = random.integers(-3, 4, (vectors, 3)).astype(np.float32)
    means = random.integers(-3, 4, (centroids, 3)).astype(np.float32)
    expected = [int(np.argmin([((row - mean) ** 2).sum() for mean in means])) if row.any() else -1 for row in some]
    assert nearest(some, means, block_rows=block).tolist() == expected
