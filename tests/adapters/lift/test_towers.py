import numpy as np
import pytest
import torch

from adapters.lift.arms import Known, Side, arm_specs, known_to
from adapters.lift.config import Arm, TowerConfig
from adapters.lift.data import LiftData
from adapters.lift.splits import split_by
from adapters.lift.towers import CellHead, CellKnowledge
from adapters.whitening import InputNorm

CONFIG = TowerConfig(components=12, collaborative=0, out_dim=4, hidden=8)


def knowledge(data: LiftData, arm: Arm, mlp: bool = False) -> tuple[CellKnowledge, Known]:
    split = split_by("kar", data.samples)
    known = known_to(arm_specs(data, "kar")[arm], data, split, 0)
    return CellKnowledge(known, split.samples, split.train, CONFIG, 0, "cpu", mlp).eval(), known


@pytest.mark.parametrize("mlp", [False, True])
def test_features_are_those_of_a_plain_computation(data: LiftData, mlp: bool) -> None:
    module, known = knowledge(data, "full", mlp)
    samples, train = data.samples, split_by("kar", data.samples).train

    def reduced(side: Side) -> np.ndarray:
        read = np.unique(side.rows[0][train])
        return InputNorm.whiten(side.tables[0][read[read >= 0]], 12)(torch.from_numpy(side.tables[0])).numpy()

    item_table, user_table = reduced(known.item), reduced(known.user)
    with torch.no_grad():
        items = module.towers.item(torch.from_numpy(item_table)).numpy()
        users = module.towers.user(torch.from_numpy(user_table)).numpy()
        index = np.random.default_rng(0).integers(0, len(samples), 64)
        found = module(torch.from_numpy(index)).numpy()
    assert found.shape == (64, module.dim)
    nothing = np.zeros(4, np.float32)
    for features, n in zip(found, index, strict=True):
        user_row = known.user.rows[0][n]
        user = users[user_row] if user_row >= 0 else nothing
        item = items[known.item.rows[0][n]]
        parts = [user, [user_row >= 0], item, [1.0]]
        for events in (samples.liked[n], samples.disliked[n]):
            read = [items[known.item.of_item[code - 1]] for code in events if code]
            mean = np.mean(read, axis=0) if read else nothing
            parts += [mean, [len(read) > 0], [item @ mean / 2]]
        parts.append([user @ item / 2])
        np.testing.assert_allclose(features, np.concatenate(parts), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arm", ["titles", "groups", "full", "histories"])
def test_the_head_begins_as_the_sum_of_the_dot_products(data: LiftData, arm: Arm) -> None:
    module, known = knowledge(data, arm)
    index = torch.arange(200)
    features = module(index)
    assert features.shape == (200, module.dim)
    expected = torch.zeros(200)
    if known.item is not None:
        start = 5 if known.user is not None else 0
        item, liked, disliked = (features[:, start + at : start + at + 4] for at in (0, 5, 11))
        expected = (item * (liked + disliked)).sum(1) / 2
        if known.user is not None:
            expected = expected + (item * features[:, :4]).sum(1) / 2
    torch.testing.assert_close(CellHead(module)(features), expected)


def test_the_whitening_is_fitted_on_what_training_events_read(data: LiftData) -> None:
    split = split_by("cold_items", data.samples)
    spec = arm_specs(data, "cold_items")["titles"]
    known = known_to(spec, data, split, 0)
    cold = np.setdiff1d(known.item.rows[0], known.item.rows[0][split.train])
    table = known.item.tables[0].copy()
    table[cold] *= 100
    first, second = (
        CellKnowledge(
            Known(Side((t,), known.item.rows, known.item.of_item)), split.samples, split.train, CONFIG, 0, "cpu", False
        )
        for t in (known.item.tables[0], table)
    )
    warm = np.unique(known.item.rows[0][split.train]) + 1
    torch.testing.assert_close(first.item_table_0[warm], second.item_table_0[warm])
    assert not torch.allclose(first.item_table_0[cold + 1], second.item_table_0[cold + 1])


def test_two_tables_of_a_side_share_its_components(data: LiftData) -> None:
    module, _ = knowledge(data, "groups")
    assert module.user_table_0.shape[1] + module.user_table_1.shape[1] == CONFIG.components
    assert not module.user_table_0[0].any()


def test_kars_layer_reads_the_raw_vectors(data: LiftData) -> None:
    split = split_by("kar", data.samples)
    known = known_to(arm_specs(data, "kar")["full"], data, split, 0)
    raw = TowerConfig(components=None, out_dim=4, hidden=8, linear_path=False, head_weight=0, dropout=0)
    module = CellKnowledge(known, split.samples, split.train, raw, 0, "cpu", False)
    np.testing.assert_array_equal(module.item_table_0[1:].numpy(), data.sources["facts"].vectors)
    assert module.towers.item_dim == data.sources["facts"].vectors.shape[1]
    assert module.towers.user_linear is None


def test_equal_seeds_give_equal_towers_and_leave_the_callers_random_state(data: LiftData) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (knowledge(data, "full")[0] for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first(torch.arange(9)), second(torch.arange(9)))
