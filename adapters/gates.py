"""How the gates of an adapter use its experts: a gate that always picks one has made the others useless."""

import math

import torch
from pydantic import BaseModel
from torch import Tensor

from adapters.experts import HybridExpertAdapter

BATCH_ROWS = 8192


class GateUse(BaseModel, frozen=True, extra="forbid"):
    """Of one tower's gate over n entities.

    `entropy` is the mean over entities of -sum_e g_e ln g_e, as a share of ln(experts): 1 where all experts count the
    same, 0 where each entity has one (None with a single expert). `usage` is the mean weight of each expert, shared
    ones first; it sums to one.
    """

    entities: int
    entropy: float | None
    usage: tuple[float, ...]


def gate_use(adapter: HybridExpertAdapter, user_inputs: Tensor, item_inputs: Tensor) -> dict[str, GateUse]:
    """Gate entropy and expert usage by tower (`user`, `item`), over what the towers read: `norm_user` [n, width] and
    `norm_item` [m, width]. A side without rows is left out.
    """
    found = {}
    with torch.no_grad():
        for side, inputs, weigh in (
            ("user", user_inputs, adapter.weigh_user),
            ("item", item_inputs, adapter.weigh_item),
        ):
            if len(inputs):
                found[side] = _use(torch.cat([weigh(batch) for batch in torch.split(inputs, BATCH_ROWS)]))
    return found


def _use(weights: Tensor) -> GateUse:
    weights = weights.double()
    entropy = float(torch.special.entr(weights).sum(dim=1).mean())
    experts = weights.shape[1]
    return GateUse(
        entities=len(weights),
        entropy=None if experts == 1 else round(entropy / math.log(experts), 6),
        usage=tuple(round(float(share), 6) for share in weights.mean(dim=0)),
    )
