import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.fusion
from adapters.fusion import mean_fusion
from warehouse.errors import InputError


def naive_fusion(users: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.array([vectors[: k + 1][users[: k + 1] == users[k]].mean(axis=0) for k in range(len(users))])


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    block=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_fusion_is_the_mean_of_what_came_so_far(lengths: list[int], block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    users = np.repeat(rng.permutation(len(lengths)), lengths)
    # Partitions without an embedding have no row: numbers rise, with gaps.
    partition_no = np.concatenate([np.sort(rng.choice(20, length, replace=False)) for length in lengths])
    vectors = rng.normal(size=(len(users), 3)).astype(np.float32)
    before = adapters.fusion.BLOCK_ROWS
    adapters.fusion.BLOCK_ROWS = block
    try:
        fused = mean_fusion(users, partition_no, vectors)
    finally:
        adapters.fusion.BLOCK_ROWS = before
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, naive_fusion(users, vectors.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_a_later_partition_changes_no_earlier_row() -> None:
    users, numbers = np.array(["a", "a", "a"]), np.array([0, 1, 2])
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    changed = vectors.copy()
    changed[2] = 1e6
    np.testing.assert_array_equal(mean_fusion(users, numbers, vectors)[:2], mean_fusion(users, numbers, changed)[:2])


def test_nothing_fuses_to_nothing() -> None:
    assert mean_fusion(np.array([]), np.array([]), np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize(
    ("users", "numbers", "message"),
    [
        (["a", "a"], [1, 0], "Partition 0 of user a follows partition 1"),
        (["a", "a"], [1, 1], "Partition 1 of user a follows partition 1"),
        (["a", "b", "a"], [0, 0, 1], "not together"),
        (["a", "b"], [0, 0, 1], "2, 3 and"),
    ],
)
def test_rows_out_of_order_are_refused(users: list[str], numbers: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mean_fusion(np.array(users), np.array(numbers), np.zeros((len(users), 2), np.float32))
