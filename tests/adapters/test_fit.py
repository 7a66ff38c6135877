import numpy as np
import pytest
import torch

from adapters.backbone import OUT_OF_VOCABULARY, CtrModel
from adapters.config import CtrConfig
from adapters.fit import Fitted, fit, predict
from adapters.measures import auc, logloss
from adapters.samples import time_split
from adapters.train import known_items
from tests.adapters.worlds import World

CONFIG = CtrConfig(embedding_dim=4, hidden=(8,), batch_size=256, max_epochs=3, learning_rate=0.01)


def fitted(
    world: World, config: CtrConfig
) -> tuple[CtrModel, torch.Tensor, Fitted, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    samples = world.samples
    masks = time_split(samples.ts, 0.1, 0.1).masks(samples.ts)
    known = known_items(samples, masks[0])
    model = CtrModel(samples, known, config)
    before = model.net.embedding_dict["item"].weight[OUT_OF_VOCABULARY].detach().clone()
    return model, before, fit(model, None, samples, masks, config), masks


def test_item_ids_are_masked_at_random_in_training(world: World) -> None:
    """Every training item is known, so only masking brings the shared id of unknown ones to a gradient."""
    config = CONFIG.model_copy(update={"weight_decay": 0.0})
    for share, moved in ((0.0, False), (0.3, True)):
        model, before, _, _ = fitted(world, config.model_copy(update={"id_mask": share}))
        after = model.net.embedding_dict["item"].weight[OUT_OF_VOCABULARY].detach()
        assert torch.equal(before, after) is not moved


def test_reports_are_of_the_model_that_is_left(world: World) -> None:
    model, _, result, (_, valid, holdout) = fitted(world, CONFIG)
    best = result.epochs[result.best]
    assert best.valid_logloss == min(e.valid_logloss for e in result.epochs)
    for mask, part in ((valid, "valid"), (holdout, "holdout")):
        rows = np.flatnonzero(mask)
        probability, label = predict(model, None, rows), world.samples.label[rows]
        assert getattr(best, f"{part}_auc") == pytest.approx(auc(label, probability))
        assert getattr(best, f"{part}_logloss") == pytest.approx(logloss(label, probability))


def test_fitting_ends_when_patience_does(world: World) -> None:
    _, _, result, _ = fitted(world, CONFIG.model_copy(update={"max_epochs": 40, "patience": 2}))
    assert len(result.epochs) == result.best + 3


def test_the_callers_random_state_is_left_alone(world: World) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fitted(world, CONFIG.model_copy(update={"max_epochs": 1}))
    assert torch.equal(torch.rand(2), expected)
