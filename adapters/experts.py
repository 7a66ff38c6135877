"""KAR's hybrid-expert adapter: text vectors of users and items to small augment vectors.

Equations: KAR (arXiv 2306.10933), section on the hybrid-expert adaptor; layer details from the authors' code.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from warehouse.errors import ConfigError, InputError

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
    keep = np.flatnonzero(values > max(RANK_TOLERANCE * float(values[0]), TINY))
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


def expert(in_dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    """One expert of KAR: Linear, ReLU, Dropout, Linear, ReLU, Dropout. Its outputs are never negative."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, out),
        nn.ReLU(),
        nn.Dropout(dropout),
    )


def mix(x: Tensor, experts: Sequence[nn.Module], gate: nn.Module) -> Tensor:
    """Expert outputs weighted by a dense softmax gate: a = sum_e softmax(W x + c)_e f_e(x). [b, d] -> [b, out]."""
    outputs = torch.stack([e(x) for e in experts], dim=1)
    return torch.einsum("be,beo->bo", gate(x).softmax(dim=1), outputs)


class HybridExpertAdapter(nn.Module):
    """Two towers of mixed experts: (x_u [b, user_dim], x_i [b, item_dim]) -> (a_u [b, out], a_i [b, out]).

    For a tower t with input x_t, shared experts s_1..s_S and its own d_t,1..d_t,P (S + 2P experts in all):

        g_t = softmax(W_t x_t + c_t)                       in R^(S+P), one gate per tower, dense
        a_t = sum_j g_t,j s_j(x_t) + sum_j g_t,S+j d_t,j(x_t)

    By default this is KAR's layer exactly: no normalisation, ReLU last, Xavier-normal weights, zero biases. a_u depends
    on x_u only and a_i on x_i only, so either side can be materialised without the other.

    Two options, off by default as KAR has neither. `user_norm` and `item_norm` put a frozen `InputNorm` in front of a
    tower. `linear_path` adds L_t x_t, a matrix [out, width] per tower: what is linear in the texts then takes few
    weights, generalises from few entities, and can be negative; the experts learn what is left.

    Raises ConfigError when shared experts are asked for and the towers' inputs differ in width.
    """

    def __init__(
        self,
        user_dim: int,
        item_dim: int,
        *,
        shared: int = 2,
        dedicated: int = 6,
        hidden: int = 128,
        out: int = 32,
        dropout: float = 0.0,
        user_norm: InputNorm | None = None,
        item_norm: InputNorm | None = None,
        linear_path: bool = False,
    ) -> None:
        super().__init__()
        if shared < 0 or dedicated < 0 or shared + dedicated == 0:
            raise ConfigError(f"An adapter needs at least one expert: shared={shared}, dedicated={dedicated}.")
        for side, dim, norm in (("user", user_dim, user_norm), ("item", item_dim, item_norm)):
            if norm is not None and norm.in_dim != dim:
                raise ConfigError(f"{side}_norm takes {norm.in_dim} numbers, but {side}_dim is {dim}.")
        user_width = user_norm.out_dim if user_norm else user_dim
        item_width = item_norm.out_dim if item_norm else item_dim
        if shared and user_width != item_width:
            raise ConfigError(
                f"Shared experts read both towers, whose inputs have {user_width} and {item_width} numbers. "
                "Encode both sides with one encoder, reduce both to one width, or set shared=0."
            )
        self.user_dim, self.item_dim, self.out_dim = user_dim, item_dim, out
        self.user_norm, self.item_norm = user_norm, item_norm
        self.shared = nn.ModuleList(expert(user_width, hidden, out, dropout) for _ in range(shared))
        self.user_experts = nn.ModuleList(expert(user_width, hidden, out, dropout) for _ in range(dedicated))
        self.item_experts = nn.ModuleList(expert(item_width, hidden, out, dropout) for _ in range(dedicated))
        self.user_gate = nn.Linear(user_width, shared + dedicated)
        self.item_gate = nn.Linear(item_width, shared + dedicated)
        self.user_linear = nn.Linear(user_width, out, bias=False) if linear_path else None
        self.item_linear = nn.Linear(item_width, out, bias=False) if linear_path else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def user(self, x: Tensor) -> Tensor:
        """a_u [b, out] of x_u [b, user_dim]."""
        x = x if self.user_norm is None else self.user_norm(x)
        mixed = mix(x, [*self.shared, *self.user_experts], self.user_gate)
        return mixed if self.user_linear is None else mixed + self.user_linear(x)

    def item(self, x: Tensor) -> Tensor:
        """a_i [b, out] of x_i [b, item_dim]."""
        x = x if self.item_norm is None else self.item_norm(x)
        mixed = mix(x, [*self.shared, *self.item_experts], self.item_gate)
        return mixed if self.item_linear is None else mixed + self.item_linear(x)

    def forward(self, x_u: Tensor, x_i: Tensor) -> tuple[Tensor, Tensor]:
        return self.user(x_u), self.item(x_i)
