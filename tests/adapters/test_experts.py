import numpy as np
import pytest
import torch
from torch import nn

from adapters.experts import STATE_VERSION, HybridExpertAdapter
from adapters.whitening import InputNorm
from warehouse.errors import ConfigError, InputError


@pytest.mark.parametrize(
    ("dim", "shared", "dedicated", "count"),
    [
        # shared/reference/knowledge-augmentation.md, section e: KAR's layer at D = 768 and 4096.
        (768, 2, 2, 621_512),
        (768, 2, 5, 1_241_486),
        (768, 2, 6, 1_448_144),
        (768, 5, 6, 1_760_438),
        (4096, 2, 2, 3_204_040),
        (4096, 2, 5, 6_399_886),
        (4096, 2, 6, 7_465_168),
        (4096, 5, 6, 9_075_382),
    ],
)
def test_parameter_counts_are_those_of_kar(dim: int, shared: int, dedicated: int, count: int) -> None:
    with torch.device("meta"):
        adapter = HybridExpertAdapter(dim, dim, shared=shared, dedicated=dedicated)
    assert sum(p.numel() for p in adapter.parameters()) == count


@pytest.mark.parametrize(("dim", "count"), [(768, 102_560), (4096, 528_544)])
def test_one_expert_has_the_parameters_of_kar(dim: int, count: int) -> None:
    assert sum(p.numel() for p in HybridExpertAdapter(dim, dim).shared[0].parameters()) == count


def numpy_layer(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
    return layer.weight.detach().numpy() @ x + layer.bias.detach().numpy()


def numpy_norm(norm: nn.BatchNorm1d, x: np.ndarray) -> np.ndarray:
    """Batch normalisation of a row by running statistics, its formula."""
    mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    scaled = (x - mean) / np.sqrt(variance + norm.eps)
    return scaled * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def numpy_tower(x: np.ndarray, experts: list[nn.Module], gate: nn.Linear) -> np.ndarray:
    """The formula of KAR, its MindSpore port and LASER alike, one row and one expert at a time."""
    rows = []
    for row in x:
        scores = numpy_layer(gate, row)
        weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        mixed = 0.0
        for weight, expert in zip(weights, experts, strict=True):
            norms = [layer for layer in expert if isinstance(layer, nn.BatchNorm1d)]
            hidden = numpy_norm(norms[0], row) if norms else row
            for layer in expert:
                if isinstance(layer, nn.Linear):
                    hidden = np.maximum(numpy_layer(layer, hidden), 0)
            mixed = mixed + weight * hidden
        rows.append(mixed)
    return np.array(rows)


def shaken(adapter: HybridExpertAdapter) -> HybridExpertAdapter:
    """With random biases and statistics: they start at zero and one, where a formula that forgets them would pass."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in adapter.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d) and module.bias is not None:
                module.bias.normal_()
            if isinstance(module, nn.BatchNorm1d):
                module.weight.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return adapter.eval()


FORMS = {
    "kar": lambda: HybridExpertAdapter(10, 10, shared=2, dedicated=3, hidden=7, out=4),
    "mindspore": lambda: HybridExpertAdapter(10, 10, shared=2, dedicated=3, hidden=7, out=4, batch_norm=True),
    "laser": lambda: HybridExpertAdapter.laser(10, 10, experts=3, out=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_towers_follow_the_published_formula(form: str) -> None:
    adapter = shaken(FORMS[form]())
    x_u, x_i = torch.randn(6, 10), torch.randn(6, 10)
    a_u, a_i = adapter(x_u, x_i)
    user_experts, item_experts = ([*adapter.shared, *own] for own in (adapter.user_experts, adapter.item_experts))
    item_gate = adapter.user_gate if adapter.item_gate is None else adapter.item_gate
    np.testing.assert_allclose(a_u.detach(), numpy_tower(x_u.numpy(), user_experts, adapter.user_gate), rtol=1e-4)
    np.testing.assert_allclose(a_i.detach(), numpy_tower(x_i.numpy(), item_experts, item_gate), rtol=1e-4)


def test_lasers_sides_share_everything() -> None:
    adapter = HybridExpertAdapter.laser(768, 768)
    x = torch.randn(3, 768)
    torch.testing.assert_close(adapter.user(x), adapter.item(x))
    assert adapter.user(x).shape == (3, 64)
    # Four layers 768-64 and one gate 768-4.
    assert sum(p.numel() for p in adapter.parameters()) == 4 * (768 * 64 + 64) + 768 * 4 + 4


def test_the_norm_stands_before_every_expert_and_not_before_the_gate() -> None:
    adapter = shaken(FORMS["mindspore"]())
    x = torch.randn(5, 10)
    gates = adapter.weigh_user(x)
    assert all(isinstance(e[0], nn.BatchNorm1d) for e in [*adapter.shared, *adapter.user_experts])
    with torch.no_grad():
        for expert in adapter.shared:
            expert[0].running_mean.add_(1.0)
    torch.testing.assert_close(adapter.weigh_user(x), gates)


def test_a_training_batch_of_one_row_passes_the_norm() -> None:
    adapter = shaken(FORMS["mindspore"]())
    x = torch.randn(1, 10)
    expected = adapter.user(x)
    torch.testing.assert_close(adapter.train().user(x), expected)


def test_outputs_are_never_negative_and_gates_sum_to_one() -> None:
    adapter = HybridExpertAdapter(10, 10)
    x = torch.randn(50, 10)
    assert (adapter.user(x) >= 0).all()
    torch.testing.assert_close(adapter.user_gate(x).softmax(1).sum(1), torch.ones(50))


def test_towers_are_separable_and_share_the_shared_experts() -> None:
    adapter = HybridExpertAdapter(10, 10, shared=1, dedicated=1)
    x_u, x_i = torch.randn(3, 10), torch.randn(3, 10)
    a_u, a_i = adapter(x_u, x_i)
    torch.testing.assert_close(a_u, adapter.user(x_u))
    torch.testing.assert_close(a_i, adapter.item(x_i))
    before = adapter.user(x_u), adapter.item(x_i)
    with torch.no_grad():
        adapter.user_experts[0][0].weight.add_(1.0)
    assert not torch.equal(adapter.user(x_u), before[0])
    assert torch.equal(adapter.item(x_i), before[1])
    with torch.no_grad():
        adapter.shared[0][0].weight.add_(1.0)
    assert not torch.equal(adapter.item(x_i), before[1])


def test_weights_begin_xavier_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    layer = HybridExpertAdapter(768, 768).shared[0][0]
    assert float(layer.weight.detach().std()) == pytest.approx((2 / (768 + 128)) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def test_dropout_stands_after_both_activations() -> None:
    kinds = [type(m) for m in HybridExpertAdapter(4, 4, dropout=0.5).shared[0]]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout]


def test_linear_path_adds_its_own_matrix_per_tower() -> None:
    torch.manual_seed(0)
    adapter = HybridExpertAdapter(10, 10, out=4, linear_path=True)
    x = torch.randn(5, 10)
    plain = HybridExpertAdapter(10, 10, out=4)
    plain.load_state_dict({k: v for k, v in adapter.state_dict().items() if "linear" not in k})
    torch.testing.assert_close(adapter.user(x), plain.user(x) + x @ adapter.user_linear.weight.T)
    torch.testing.assert_close(adapter.item(x), plain.item(x) + x @ adapter.item_linear.weight.T)


def test_shared_experts_refuse_towers_of_different_widths() -> None:
    with pytest.raises(ConfigError, match="10 and 12"):
        HybridExpertAdapter(10, 12)
    assert HybridExpertAdapter(10, 12, shared=0).item(torch.zeros(1, 12)).shape == (1, 32)


def test_an_adapter_without_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="shared=0, dedicated=0"):
        HybridExpertAdapter(4, 4, shared=0, dedicated=0)


def skewed(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    return (rng.normal(size=(rows, dim)) * np.linspace(3, 0.1, dim) @ rng.normal(size=(dim, dim)) + 5).astype(
        np.float32
    )


def test_whitening_gives_uncorrelated_numbers_of_unit_variance() -> None:
    vectors = skewed(np.random.default_rng(0), 400, 12)
    norm = InputNorm.whiten(vectors, 5)
    out = norm(torch.from_numpy(vectors)).numpy().astype(np.float64)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(out.T, bias=True), np.eye(5), atol=2e-3)
    assert not list(norm.parameters())


def test_whitening_keeps_the_directions_of_largest_variance() -> None:
    vectors = skewed(np.random.default_rng(0), 400, 12).astype(np.float64)
    out = InputNorm.whiten(vectors, 3)(torch.from_numpy(vectors).float()).numpy()
    components = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[0][:, :3]
    correlation = np.abs(np.corrcoef(out.T, components.T)[:3, 3:])
    np.testing.assert_allclose(correlation, np.eye(3), atol=1e-3)


def test_whitening_of_few_rows_leaves_the_rest_zero() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    out = InputNorm.whiten(vectors, 6)(torch.from_numpy(vectors))
    assert torch.isfinite(out).all()
    assert not out[:, 2:].any()
    assert not InputNorm.whiten(np.ones((4, 10), np.float32), 2)(torch.ones(1, 10)).any()


@pytest.mark.parametrize("power", [0.0, 0.25])
def test_partial_whitening_raises_small_components_by_their_variance_to_the_power(power: float) -> None:
    vectors = skewed(np.random.default_rng(0), 400, 12)
    full = InputNorm.whiten(vectors, 6, 0.5)(torch.from_numpy(vectors)).numpy()
    part = InputNorm.whiten(vectors, 6, power)(torch.from_numpy(vectors)).numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64), bias=True))[::-1][:6]
    np.testing.assert_allclose(np.abs(np.corrcoef(full.T, part.T)[:6, 6:]), np.eye(6), atol=5e-3)
    expected = eigenvalues ** (0.5 - power)
    np.testing.assert_allclose(part.std(0) / part.std(0)[0], expected / expected[0], rtol=1e-2)
    assert float((part**2).mean()) == pytest.approx(1.0, rel=1e-2)


def test_aligned_sides_agree_where_their_texts_do() -> None:
    rng = np.random.default_rng(0)
    meaning = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 20))
    users, items = 2.0 * meaning + 7.0, 0.1 * meaning[:150] - 3.0
    user_norm, item_norm = InputNorm.align(users.astype(np.float32), items.astype(np.float32), 4)
    a_u = user_norm(torch.from_numpy(users[:150]).float())
    a_i = item_norm(torch.from_numpy(items).float())
    for column in range(4):
        assert np.corrcoef(a_u[:, column], a_i[:, column])[0, 1] > 0.99


def test_aligning_takes_the_other_side_where_one_has_no_row() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 6)).astype(np.float32)
    user_norm, item_norm = InputNorm.align(np.zeros((0, 6), np.float32), vectors, 3)
    x = torch.randn(2, 6)
    torch.testing.assert_close(user_norm(x), item_norm(x))


def test_a_norm_needs_a_row() -> None:
    none = np.zeros((0, 6), np.float32)
    for fit in (
        lambda: InputNorm.whiten(none, 3),
        lambda: InputNorm.align(none, none, 3),
    ):
        with pytest.raises(InputError, match="No vector to fit"):
            fit()


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"out": 0}, "out=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"one_gate": True}, "dedicated=6 must be 0"),
    ],
)
def test_impossible_forms_are_refused(widths: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridExpertAdapter(10, 10, **widths)


def test_vectors_of_another_width_are_refused_with_both_widths() -> None:
    adapter = HybridExpertAdapter(10, 10)
    with pytest.raises(InputError, match=r"item tower takes vectors \[b, 10\], these have shape \[2, 12\]"):
        adapter(torch.zeros(2, 10), torch.zeros(2, 12))


def test_fields_of_another_width_are_refused() -> None:
    HybridExpertAdapter(10, 10).require_width(32)
    with pytest.raises(ConfigError, match="gives 64 numbers and the model's fields have 32"):
        HybridExpertAdapter.laser(10, 10).require_width(32)


def test_state_dicts_of_another_version_are_refused() -> None:
    adapter, other = HybridExpertAdapter(10, 10), HybridExpertAdapter(10, 10)
    state = adapter.state_dict()
    assert int(state["state_version"]) == STATE_VERSION
    other.load_state_dict(state)
    x = torch.randn(2, 10)
    torch.testing.assert_close(other.user(x), adapter.user(x))
    with pytest.raises(InputError, match=r"layout 99, this version of Lorestream has layout 1\. .*train again"):
        other.load_state_dict({**state, "state_version": torch.tensor(99)})


def test_a_state_dict_from_before_versions_loads() -> None:
    adapter, other = HybridExpertAdapter(10, 10), HybridExpertAdapter(10, 10)
    other.load_state_dict({name: t for name, t in adapter.state_dict().items() if name != "state_version"})
    x = torch.randn(2, 10)
    torch.testing.assert_close(other.item(x), adapter.item(x))
