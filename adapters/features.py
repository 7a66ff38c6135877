"""Knowledge as the features a CTR model reads: both augment vectors, their dot product, and what is missing."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from adapters.experts import HybridExpertAdapter
from adapters.fusion import InterestFusion
from adapters.samples import Samples
from adapters.texts import TextTensors, UserTexts


class Knowledge(nn.Module):
    """Knowledge features of samples by position, [b] -> [b, dim]: a_u, a_i, their dot product, has_user, has_item.

    A missing side is all zeros with its flag at 0. The dot product (over the root of the width) is there because
    a network finds the agreement of two vectors of 32 numbers only with far more data than one number needs; any
    reader of the tables can compute it.
    """

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim, self.dim = out_dim, 2 * out_dim + 3

    def features(self, user: Tensor, item: Tensor, has_user: Tensor, has_item: Tensor) -> Tensor:
        flags = torch.stack([has_user, has_item], dim=1)
        # Not a product with the flag: what stands where there is nothing may be nan.
        user, item = (torch.where(flags[:, n, None], side, 0.0) for n, side in enumerate((user, item)))
        dot = (user * item).sum(dim=1, keepdim=True) / self.out_dim**0.5
        return torch.cat([user, item, dot, flags.to(user.dtype)], dim=1)


class StoredKnowledge(Knowledge):
    """Knowledge given as arrays per sample: `user`, `item` [n, out], `has_user`, `has_item` [n]."""

    def __init__(
        self, user: np.ndarray, item: np.ndarray, has_user: np.ndarray, has_item: np.ndarray, device: str
    ) -> None:
        super().__init__(user.shape[1])
        self.columns = tuple(torch.from_numpy(np.array(c)).to(device) for c in (user, item, has_user, has_item))

    def forward(self, index: Tensor) -> Tensor:
        user, item, has_user, has_item = (column[index] for column in self.columns)
        return self.features(user.float(), item.float(), has_user, has_item)


class AdaptedKnowledge(Knowledge):
    """Knowledge that an adapter makes of text vectors [rows, d] while it is being trained.

    With a `fusion`, the user tower reads what that makes of the user's `texts`, whose rows are those of `user_vectors`.
    """

    def __init__(
        self,
        adapter: HybridExpertAdapter,
        samples: Samples,
        user_vectors: np.ndarray,
        item_vectors: np.ndarray,
        device: str,
        *,
        fusion: InterestFusion | None = None,
        texts: UserTexts | None = None,
    ) -> None:
        super().__init__(adapter.out_dim)
        self.adapter = adapter.to(device)
        self.fusion = None if fusion is None else fusion.to(device)
        # The norms are frozen, so what they give is computed once. A sample without a vector reads row 0 of an empty or
        # other side; its flag then makes the result zero.
        with torch.no_grad():
            self.user_inputs, self.item_inputs = (
                norm(torch.from_numpy(np.array(v if len(v) else np.zeros((1, v.shape[1])), np.float32)).to(device))
                for v, norm in ((user_vectors, adapter.norm_user), (item_vectors, adapter.norm_item))
            )
        self.texts = None
        if fusion is not None:
            rows = texts if texts is not None else UserTexts.single(user_vectors)
            self.texts = TextTensors(rows, adapter.norm_user, device)
        self.user_row = torch.from_numpy(samples.user_row).to(device)
        self.item_row = torch.from_numpy(samples.item_row).to(device)

    def user_inputs_of(self, rows: Tensor) -> Tensor:
        """What the user tower reads [r, width], by row of the text vectors."""
        if self.fusion is None or self.texts is None:
            return self.user_inputs[rows]
        fused: Tensor = self.fusion(*self.texts.gather(rows))[0]
        return fused

    def item_inputs_of(self, rows: Tensor) -> Tensor:
        """What the item tower reads [r, width], by row of the text vectors."""
        return self.item_inputs[rows]

    def user(self, rows: Tensor) -> Tensor:
        """User vectors [r, out] by row of the text vectors."""
        return self.adapter.mix_user(self.user_inputs_of(rows))

    def item(self, rows: Tensor) -> Tensor:
        """Item vectors [r, out] by row of the text vectors."""
        return self.adapter.mix_item(self.item_inputs_of(rows))

    def forward(self, index: Tensor) -> Tensor:
        user_row, item_row = self.user_row[index], self.item_row[index]
        user, item = _per_entity(self.user, user_row), _per_entity(self.item, item_row)
        return self.features(user, item, user_row >= 0, item_row >= 0)


class KnowledgeHead(nn.Module):
    """A logit [b] out of knowledge features [b, dim] alone: linear, beginning as the dot product of both sides."""

    def __init__(self, knowledge: Knowledge) -> None:
        super().__init__()
        self.linear = nn.Linear(knowledge.dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight[0, 2 * knowledge.out_dim] = 1.0

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear(features)
        return logits.squeeze(1)


def _per_entity(tower: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Tower outputs per sample, each distinct row of the batch being computed once."""
    distinct, place = torch.unique(rows.clamp(min=0), return_inverse=True)
    return tower(distinct)[place]
