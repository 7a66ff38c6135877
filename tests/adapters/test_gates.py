import numpy as np
import pytest
import torch

from adapters.experts import HybridExpertAdapter
from adapters.gates import gate_use


def test_entropy_and_usage_are_those_of_the_gates() -> None:
    torch.manual_seed(0)
    adapter = HybridExpertAdapter(6, 6, shared=1, dedicated=2)
    x_u, x_i = torch.randn(50, 6), torch.randn(20, 6)
    use = gate_use(adapter, x_u, x_i)
    for side, x, gate in (("user", x_u, adapter.user_gate), ("item", x_i, adapter.item_gate)):
        scores = (x @ gate.weight.T + gate.bias).detach().numpy().astype(np.float64)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        entropy = -(weights * np.log(weights)).sum(1).mean() / np.log(3)
        assert use[side].entities == len(x)
        assert use[side].entropy == pytest.approx(entropy, abs=1e-5)
        assert use[side].usage == pytest.approx(weights.mean(0), abs=1e-5)


def test_a_gate_that_always_picks_one_expert_has_no_entropy() -> None:
    adapter = HybridExpertAdapter(6, 6, shared=0, dedicated=2)
    with torch.no_grad():
        adapter.user_gate.weight.zero_()
        adapter.user_gate.bias.copy_(torch.tensor([0.0, 200.0]))
    use = gate_use(adapter, torch.randn(5, 6), torch.zeros(0, 6))
    assert use["user"].entropy == 0.0
    assert use["user"].usage == (0.0, 1.0)
    assert "item" not in use
