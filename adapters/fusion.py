"""Fusion of a user's partition embeddings into one vector per sealed partition."""

import numpy as np

from warehouse.errors import InputError

# Rows summed at once: bounds the float64 working copy (65k x 384 is 200 MB).
BLOCK_ROWS = 65_536


def mean_fusion(users: np.ndarray, partition_no: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Row k of a user: the mean of the embeddings of the user's partitions up to and including k. float32 [n, d].

    `users` [n] are ids or codes, each user's rows together and in order of `partition_no` [n]; `vectors` is [n, d].
    A partition without an embedding simply has no row. Nothing after a row enters it, so the result may be joined
    from that partition's `sealed_at`.

    Raises InputError when lengths differ, or a user's rows are out of order, repeated or not together.
    """
    if not len(users) == len(partition_no) == len(vectors):
        raise InputError(
            f"users, partition_no and vectors have {len(users)}, {len(partition_no)} and {len(vectors)} rows; "
            "they must be columns of one table."
        )
    fused = np.empty(vectors.shape, dtype=np.float32)
    if len(users) == 0:
        return fused
    starts = _segment_starts(users, partition_no)
    ends = np.append(starts[1:], len(users))
    first = 0
    while first < len(starts):
        # Whole users only: the largest block that fits, or one user who alone is larger.
        last = max(int(np.searchsorted(ends, starts[first] + BLOCK_ROWS, side="right")), first + 1)
        lo, hi = int(starts[first]), int(ends[last - 1])
        lengths = ends[first:last] - starts[first:last]
        local = np.repeat(starts[first:last] - lo, lengths)
        sums = np.cumsum(vectors[lo:hi], axis=0, dtype=np.float64)
        before = np.where((local > 0)[:, None], sums[local - 1], 0.0)
        count = np.arange(hi - lo) - local + 1
        fused[lo:hi] = (sums - before) / count[:, None]
        first = last
    return fused


def _segment_starts(users: np.ndarray, partition_no: np.ndarray) -> np.ndarray:
    """Index of each user's first row."""
    new_user = np.append(True, users[1:] != users[:-1])
    wrong = np.flatnonzero(~new_user[1:] & (partition_no[1:] <= partition_no[:-1]))
    if len(wrong):
        row = int(wrong[0]) + 1
        raise InputError(
            f"Partition {partition_no[row]} of user {users[row]} follows partition {partition_no[row - 1]} "
            f"(row {row}). Sort the rows by user and partition_no, one row per partition."
        )
    starts = np.flatnonzero(new_user)
    if len(np.unique(users[starts])) != len(starts):
        raise InputError("A user's rows are not together. Sort the rows by user and partition_no.")
    return starts
