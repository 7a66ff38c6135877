"""Augment vectors for the feature tables, out of text vectors and a trained adapter."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from adapters.experts import HybridExpertAdapter
from adapters.texts import TextTensors, UserTexts
from adapters.trained import Towers, TrainedAdapter
from warehouse.errors import CorruptWarehouse, InputError

BATCH_ROWS = 8192

# Of users with all their partitions: bounds the padded copy (1024 users of 100 partitions of 256 numbers: 100 MB).
FUSED_BATCH_ROWS = 1024


def materialise_users(adapter: TrainedAdapter, vectors: np.ndarray, texts: UserTexts | None = None) -> np.ndarray:
    """Augment vectors [n, out] float32 of user text vectors [n, d]; raises as `materialise_items`.

    An adapter with fusion reads the `texts` that the vectors are means of; without them, each vector counts as its
    row's only text.
    """
    dim, out_dim = adapter.meta.user_dim, adapter.meta.config.out_dim
    if adapter.towers.fusion is None:
        return _materialise(adapter.towers.user, vectors, dim, out_dim, "user")
    rows = UserTexts.single(vectors) if texts is None else texts
    _check_width(rows.vectors, dim, "user")
    if len(rows) != len(vectors):
        raise InputError(f"{len(vectors)} user vectors came with {len(rows)} rows of texts; give one per row.")
    augment = np.empty((len(rows), out_dim), np.float32)
    with torch.inference_mode():
        for part, made in fused_batches(adapter.towers, rows):
            augment[part] = made.numpy()
    return _finite(augment, vectors, "user")


def materialise_items(adapter: TrainedAdapter, vectors: np.ndarray) -> np.ndarray:
    """Augment vectors [n, out] float32 of item text vectors [n, d].

    Raises InputError when d is not the adapter's width, CorruptWarehouse when a vector holds nan or infinity.
    """
    return _materialise(adapter.towers.item, vectors, adapter.meta.item_dim, adapter.meta.config.out_dim, "item")


def fused_batches(towers: Towers, texts: UserTexts) -> Iterator[tuple[slice, Tensor]]:
    """The rows of `texts` in pieces, with the augment vectors [rows, out] of each."""
    adapter = towers.adapter
    assert isinstance(adapter, HybridExpertAdapter), type(adapter)
    tensors = TextTensors(texts, adapter.norm_user, "cpu")
    for lo in range(0, len(texts), FUSED_BATCH_ROWS):
        part = slice(lo, min(lo + FUSED_BATCH_ROWS, len(texts)))
        yield part, towers.fused_user(tensors.gather(torch.arange(part.start, part.stop)))


def _materialise(
    tower: Callable[[Tensor], Tensor], vectors: np.ndarray, dim: int, out_dim: int, side: str
) -> np.ndarray:
    _check_width(vectors, dim, side)
    augment = np.empty((len(vectors), out_dim), dtype=np.float32)
    with torch.inference_mode():
        for lo in range(0, len(vectors), BATCH_ROWS):
            batch = torch.from_numpy(np.array(vectors[lo : lo + BATCH_ROWS], dtype=np.float32))
            augment[lo : lo + BATCH_ROWS] = tower(batch).numpy()
    return _finite(augment, vectors, side)


def _check_width(vectors: np.ndarray, dim: int, side: str) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InputError(
            f"The adapter takes {side} vectors of {dim} numbers, these have shape {vectors.shape}. "
            "Encode with the encoder it was trained with, or run `lorestream train`."
        )


def _finite(augment: np.ndarray, vectors: np.ndarray, side: str) -> np.ndarray:
    wrong = np.flatnonzero(~np.isfinite(augment).all(axis=1))
    if len(wrong):
        where = "in the text vector" if not np.isfinite(vectors[wrong[0]]).all() else "out of a finite text vector"
        raise CorruptWarehouse(
            f"{len(wrong)} of {len(vectors)} {side} augment vectors are not finite; the first is row {wrong[0]} "
            f"({where}). Encode the texts again, or train another adapter."
        )
    return augment
