"""Vectors as numpy files: `key` and `value` in an .npz for FuxiCTR, or a matrix with its ids for any model.

FuxiCTR matches keys to its vocabulary as text and reads no object arrays, so keys are fixed-width unicode. It appends
keys that its training data lacks after the out-of-vocabulary row and shows them as they are with `freeze_emb: true`,
its default; unfrozen, it masks them to zero.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from warehouse.export.vectors import Vectors
from warehouse.optional import needs
from warehouse.store import replacing, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_fuxictr(out: Path, vectors: Vectors, cut: str) -> list[Path]:
    """The written `<side>_augment<cut>.npz`: key [n] unicode, value [n, dim] float32."""
    with needs("numpy", "An export for FuxiCTR"):
        import numpy as np
    path = out / f"{vectors.side}_augment{cut}.npz"
    keys = np.asarray(vectors.ids.to_pylist(), dtype=np.str_)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, key=keys, value=_matrix(vectors))
    return [path]


def write_npy(out: Path, vectors: Vectors, cut: str) -> list[Path]:
    """The written `<side>_matrix<cut>.npy` [n + 1, dim] float32 and `<side>_ids<cut>.parquet` (id, row).

    Row 0 is zeros, for ids that are not listed: padding in PyTorch, out of vocabulary in Keras.
    """
    with needs("numpy", "An export as a matrix"):
        import numpy as np
    matrix, ids = out / f"{vectors.side}_matrix{cut}.npy", out / f"{vectors.side}_ids{cut}.parquet"
    with replacing(matrix) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.concatenate([np.zeros((1, vectors.dim), np.float32), _matrix(vectors)]))
    rows = pa.array(np.arange(1, len(vectors.ids) + 1), pa.int64())
    write_table(ids, pa.table({vectors.entity: vectors.ids, "row": rows}))
    return [matrix, ids]


def _matrix(vectors: Vectors) -> "NDArray[np.float32]":
    """The vectors [n, dim] as float32, sharing Arrow's memory."""
    matrix: NDArray[np.float32] = vectors.numbers.to_numpy().reshape(len(vectors.ids), vectors.dim)
    return matrix
