"""Augment vectors for the feature tables, out of text vectors and a trained adapter."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from adapters.trained import TrainedAdapter
from warehouse.errors import CorruptWarehouse, InputError

BATCH_ROWS = 8192


def materialise_users(adapter: TrainedAdapter, vectors: np.ndarray) -> np.ndarray:
    """Augment vectors [n, out] float32 of user text vectors [n, d]; raises as `materialise_items`."""
    return _materialise(adapter.towers.user, vectors, adapter.meta.user_dim, adapter.meta.config.out_dim, "user")


def materialise_items(adapter: TrainedAdapter, vectors: np.ndarray) -> np.ndarray:
    """Augment vectors [n, out] float32 of item text vectors [n, d].

    Raises InputError when d is not the adapter's width, CorruptWarehouse when a vector holds nan or infinity.
    """
    return _materialise(adapter.towers.item, vectors, adapter.meta.item_dim, adapter.meta.config.out_dim, "item")


def _materialise(
    tower: Callable[[Tensor], Tensor], vectors: np.ndarray, dim: int, out_dim: int, side: str
) -> np.ndarray:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InputError(
            f"The adapter takes {side} vectors of {dim} numbers, these have shape {vectors.shape}. "
            "Encode with the encoder it was trained with, or run `lorestream train`."
        )
    augment = np.empty((len(vectors), out_dim), dtype=np.float32)
    with torch.inference_mode():
        for lo in range(0, len(vectors), BATCH_ROWS):
            batch = torch.from_numpy(np.array(vectors[lo : lo + BATCH_ROWS], dtype=np.float32))
            augment[lo : lo + BATCH_ROWS] = tower(batch).numpy()
    wrong = np.flatnonzero(~np.isfinite(augment).all(axis=1))
    if len(wrong):
        where = "in the text vector" if not np.isfinite(vectors[wrong[0]]).all() else "out of a finite text vector"
        raise CorruptWarehouse(
            f"{len(wrong)} of {len(vectors)} {side} augment vectors are not finite; the first is row {wrong[0]} "
            f"({where}). Encode the texts again, or train another adapter."
        )
    return augment
