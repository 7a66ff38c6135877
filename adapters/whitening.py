"""Whitening and reduction of text vectors in front of the towers, fitted on training entities only."""

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from warehouse.errors import InputError

# Components below this share of the largest eigenvalue are rounding noise; whitening would blow them up to unit size.
RANK_TOLERANCE = 1e-7

# Rows per step of the covariance sum: bounds the float64 copy (100k x 384 is 300 MB).
FIT_ROWS = 65_536
TINY = float(np.finfo(np.float64).tiny)


def moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and covariance [d, d] of rows [n, d], in float64. Raises InputError when there is no row."""
    if len(vectors) == 0:
        raise InputError("No vector to fit a whitening on: no training sample has knowledge on this side.")
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), FIT_ROWS):
        centred = vectors[start : start + FIT_ROWS] - mean
        covariance += centred.T @ centred
    return mean, covariance / len(vectors)


def whitening(covariance: np.ndarray, out_dim: int, power: float = 0.5) -> np.ndarray:
    """Projection [d, out_dim] onto the largest principal components, component c being scaled by variance_c^-power.

    `power` 0.5 gives every component unit variance, 0 only rotates, between them small components are raised but stay
    small. The whole is scaled to a mean variance of 1 over components. Columns beyond the rank are zero.
    """
    values, directions = np.linalg.eigh(covariance)
    values, directions = values[::-1][:out_dim], directions[:, ::-1][:, :out_dim]
    # An eigenvector's sign is arbitrary: fix it, so that equal data gives equal files.
    peak = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[peak, np.arange(directions.shape[1])])
    keep = np.flatnonzero(values > max(RANK_TOLERANCE * float(values[:1].sum()), TINY))
    projection = np.zeros((len(covariance), out_dim))
    if len(keep):
        spread = np.mean(values[keep] ** (1 - 2 * power)) ** 0.5
        projection[:, keep] = directions[:, keep] * values[keep] ** -power / spread
    return projection


class InputNorm(nn.Module):
    """A frozen affine map in front of a tower: y = (x - mean) @ projection. Shapes: [b, d] -> [b, k].

    Fitted by `whiten` or `align` on training entities only; it holds no trainable parameter.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    @classmethod
    def empty(cls, in_dim: int, out_dim: int) -> Self:
        """A norm of the right shapes, to load a state dict into."""
        return cls(torch.zeros(in_dim), torch.zeros(in_dim, out_dim))

    @classmethod
    def whiten(cls, vectors: np.ndarray, out_dim: int, power: float = 0.5) -> Self:
        """The first `out_dim` principal components of `vectors` [n, d], whitened by `power` (see `whitening`).

        Where `vectors` have fewer independent directions than `out_dim`, the outputs left over are always zero.
        Raises InputError when there is no row to fit on.
        """
        mean, covariance = moments(vectors)
        projection = whitening(covariance, out_dim, power)
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(projection).float())

    @classmethod
    def align(cls, user_vectors: np.ndarray, item_vectors: np.ndarray, out_dim: int) -> tuple[Self, Self]:
        """One PCA whitening for both sides [n, d], [m, d] of one encoder: each side centred and scaled on its own.

        The components are those of the mean of both sides' covariances at equal total variance, so neither side's
        number of rows matters. A direction of the text space lands on the same output for users and items: where the
        texts of a user and an item speak alike, their outputs agree in sign, which separate whitenings would undo.
        A side without rows takes the other's centre and scale, one whose rows are all equal its scale.

        Raises InputError when neither side has a row.
        """
        fitted = [moments(v) if len(v) else None for v in (user_vectors, item_vectors)]
        usable = [f for f in fitted if f is not None and np.trace(f[1]) > 0] or [f for f in fitted if f is not None]
        if not usable:
            raise InputError("No vector to fit a whitening on: no training sample has knowledge.")
        projection = whitening(np.mean([c / _total_variance(c) for _, c in usable], axis=0), out_dim)
        norms = []
        for side in fitted:
            mean = usable[0][0] if side is None else side[0]
            covariance = side[1] if side is not None and np.trace(side[1]) > 0 else usable[0][1]
            scaled = projection / _total_variance(covariance) ** 0.5
            norms.append(cls(torch.from_numpy(mean).float(), torch.from_numpy(scaled).float()))
        return norms[0], norms[1]

    def beside(self, projection: np.ndarray) -> Self:
        """A norm of the same centre whose first outputs are those of another `projection` [d, k]."""
        return type(self)(self.mean, torch.cat([torch.from_numpy(projection).float(), self.projection], dim=1))

    @property
    def in_dim(self) -> int:
        return self.projection.shape[0]

    @property
    def out_dim(self) -> int:
        return self.projection.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) @ self.projection


def _total_variance(covariance: np.ndarray) -> float:
    """Trace of a covariance; 1 where it is 0, so that equal rows become zeros."""
    total = float(np.trace(covariance))
    return total if total > 0 else 1.0
