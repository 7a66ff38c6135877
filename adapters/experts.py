"""KAR's hybrid-expert adapter: text vectors of users and items to small augment vectors.

Equations: KAR (arXiv 2306.10933), section on the hybrid-expert adaptor; layer details from the authors' code, from
their MindSpore port (the norm in front of every expert), and from LASER's code (arXiv 2408.05676: one pool, one gate).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.versions import versioned
from adapters.whitening import InputNorm
from warehouse.errors import ConfigError, InputError

# Of the layout of state dicts: which modules there are, and what their tensors mean.
STATE_VERSION = 1


class ExpertNorm(nn.BatchNorm1d):
    """BatchNorm1d that takes a training batch of one row by its running statistics, where torch's raises an error."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def expert(in_dim: int, hidden: int | None, out: int, dropout: float, batch_norm: bool = False) -> nn.Sequential:
    """One expert: [b, in_dim] -> [b, out], never negative.

    KAR's has two layers, each Linear, ReLU, Dropout; with `hidden` None, as in LASER, it has one. `batch_norm` puts a
    BatchNorm1d in front, as the MindSpore port does.
    """
    widths = [in_dim, out] if hidden is None else [in_dim, hidden, out]
    layers: list[nn.Module] = [ExpertNorm(in_dim)] if batch_norm else []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def expert_outputs(x: Tensor, experts: Sequence[nn.Sequential]) -> Tensor:
    """What each of e experts of one shape makes of x: [b, d] -> [e, b, out].

    Layer by layer and all experts at once: as many products of small matrices take three times as long.
    """
    for layers in zip(*experts, strict=True):
        first = layers[0]
        if isinstance(first, nn.Linear):
            weight = torch.stack([layer.weight for layer in layers])
            bias = torch.stack([layer.bias for layer in layers])
            if x.ndim == 2:
                flat = torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T)
                x = flat.view(len(x), *bias.shape).transpose(0, 1)
            else:
                x = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
        elif isinstance(first, ExpertNorm):
            x = torch.stack([norm(x) for norm in layers])
        else:
            # ReLU and Dropout have no weights: one stands for all.
            x = first(x)
    return x


def mix(x: Tensor, experts: Sequence[nn.Sequential], weights: Tensor) -> Tensor:
    """Expert outputs weighted by a gate: a = sum_e weights_e f_e(x). [b, d], weights [b, e] -> [b, out]."""
    return torch.einsum("be,ebo->bo", weights, expert_outputs(x, experts))


class HybridExpertAdapter(nn.Module):
    """Two towers of mixed experts: (x_u [b, user_dim], x_i [b, item_dim]) -> (a_u [b, out], a_i [b, out]).

    For a tower t with input x_t, shared experts s_1..s_S and its own d_t,1..d_t,P (S + 2P experts in all):

        g_t = softmax(W_t x_t + c_t)                       in R^(S+P), one gate per tower, dense
        a_t = sum_j g_t,j s_j(x_t) + sum_j g_t,S+j d_t,j(x_t)

    By default this is KAR's layer exactly: no normalisation, two-layer experts with ReLU last, Xavier-normal weights,
    zero biases. a_u depends on x_u only and a_i on x_i only, so either side can be materialised without the other.

    Options, all off by default as KAR has none of them:

        user_norm, item_norm   a frozen `InputNorm` in front of a tower: experts, gate and linear path read its output
        linear_path            adds L_t x_t, a matrix [out, width] per tower: what is linear in the texts then takes few
                               weights, generalises from few entities, and can be negative; experts learn what is left
        batch_norm             BatchNorm1d on the input of every expert, not of the gate (KAR's MindSpore port)
        one_gate               both towers have the same gate as well (LASER; see `laser`)
        hidden=None            experts of one layer (LASER)

    State dicts carry `state_version`; one of another version is refused.

    Raises ConfigError for widths that do not fit each other, and InputError for vectors of another width.
    """

    def __init__(
        self,
        user_dim: int,
        item_dim: int,
        *,
        shared: int = 2,
        dedicated: int = 6,
        hidden: int | None = 128,
        out: int = 32,
        dropout: float = 0.0,
        user_norm: InputNorm | None = None,
        item_norm: InputNorm | None = None,
        linear_path: bool = False,
        batch_norm: bool = False,
        one_gate: bool = False,
    ) -> None:
        super().__init__()
        if shared < 0 or dedicated < 0 or shared + dedicated == 0:
            raise ConfigError(f"An adapter needs at least one expert: shared={shared}, dedicated={dedicated}.")
        if one_gate and dedicated:
            raise ConfigError(
                f"One gate for both towers weighs the same experts in both: dedicated={dedicated} must be 0, and all "
                "experts shared."
            )
        for name, width in (("user_dim", user_dim), ("item_dim", item_dim), ("hidden", hidden), ("out", out)):
            if width is not None and width < 1:
                raise ConfigError(f"An adapter's widths are at least 1: {name}={width}.")
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

        def pool(size: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(expert(width, hidden, out, dropout, batch_norm) for _ in range(size))

        self.shared = pool(shared, user_width)
        self.user_experts, self.item_experts = pool(dedicated, user_width), pool(dedicated, item_width)
        self.user_gate = nn.Linear(user_width, shared + dedicated)
        self.item_gate = None if one_gate else nn.Linear(item_width, shared + dedicated)
        self.user_linear = nn.Linear(user_width, out, bias=False) if linear_path else None
        self.item_linear = nn.Linear(item_width, out, bias=False) if linear_path else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        versioned(self, STATE_VERSION)

    @classmethod
    def laser(cls, user_dim: int, item_dim: int, *, experts: int = 4, out: int = 64, dropout: float = 0.0) -> Self:
        """LASER's form: one pool of single-layer experts and one gate, which both towers use with the same weights.

            g(x) = softmax(W x + c) in R^E,    a_t = sum_j g(x_t)_j relu(V_j x_t + b_j)

        LASER's code has 1-6 experts of width 64. Models that see fields of equal width need `out` to be that width.
        """
        return cls(
            user_dim, item_dim, shared=experts, dedicated=0, hidden=None, out=out, dropout=dropout, one_gate=True
        )

    def require_width(self, field_width: int) -> None:
        """Raise ConfigError unless augment vectors are as wide as the fields of the model that they enter as fields."""
        if self.out_dim != field_width:
            raise ConfigError(
                f"The adapter gives {self.out_dim} numbers and the model's fields have {field_width}. As fields of "
                f"their own, augment vectors must be as wide as the others: build the adapter with out={field_width}."
            )

    def pool_of(self, own: nn.ModuleList) -> list[nn.Sequential]:
        """The experts of a tower in the order of its gate's weights: shared ones, then its `own`."""
        return cast("list[nn.Sequential]", [*self.shared, *own])

    def norm_user(self, x: Tensor) -> Tensor:
        """What the user tower reads of x_u [b, user_dim]; frozen, so it may be computed once."""
        _require_dim(x, self.user_dim, "user")
        return x if self.user_norm is None else self.user_norm(x)

    def norm_item(self, x: Tensor) -> Tensor:
        """What the item tower reads of x_i [b, item_dim]; frozen, so it may be computed once."""
        _require_dim(x, self.item_dim, "item")
        return x if self.item_norm is None else self.item_norm(x)

    def weigh_user(self, normed: Tensor) -> Tensor:
        """The user gate's weights [b, S + P] of `norm_user`'s output, shared experts first; rows sum to one."""
        weights: Tensor = self.user_gate(normed).softmax(dim=1)
        return weights

    def weigh_item(self, normed: Tensor) -> Tensor:
        """The item gate's weights [b, S + P] of `norm_item`'s output, shared experts first; rows sum to one."""
        gate = self.user_gate if self.item_gate is None else self.item_gate
        weights: Tensor = gate(normed).softmax(dim=1)
        return weights

    def mix_user(self, normed: Tensor) -> Tensor:
        """a_u [b, out] of `norm_user`'s output."""
        mixed = mix(normed, self.pool_of(self.user_experts), self.weigh_user(normed))
        return mixed if self.user_linear is None else mixed + self.user_linear(normed)

    def mix_item(self, normed: Tensor) -> Tensor:
        """a_i [b, out] of `norm_item`'s output."""
        mixed = mix(normed, self.pool_of(self.item_experts), self.weigh_item(normed))
        return mixed if self.item_linear is None else mixed + self.item_linear(normed)

    def user(self, x: Tensor) -> Tensor:
        """a_u [b, out] of x_u [b, user_dim]."""
        return self.mix_user(self.norm_user(x))

    def item(self, x: Tensor) -> Tensor:
        """a_i [b, out] of x_i [b, item_dim]."""
        return self.mix_item(self.norm_item(x))

    def forward(self, x_u: Tensor, x_i: Tensor) -> tuple[Tensor, Tensor]:
        return self.user(x_u), self.item(x_i)


def _require_dim(x: Tensor, dim: int, side: str) -> None:
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(
            f"The {side} tower takes vectors [b, {dim}], these have shape {list(x.shape)}. "
            f"Build the adapter with {side}_dim={x.shape[-1] if x.ndim else 'their width'}, or use its encoder."
        )
