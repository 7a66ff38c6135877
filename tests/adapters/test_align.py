from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters.align import info_nce
from adapters.config import AdapterConfig
from adapters.materialise import materialise_items, materialise_users
from adapters.measures import auc
from adapters.samples import time_split
from adapters.train import train_adapter
from tests.adapters.worlds import World

CONFIG = AdapterConfig(
    objective="align", out_dim=8, expert_hidden=16, components=24, batch_size=256, max_epochs=10, embedding_dim=4
)


def test_info_nce_follows_its_formula() -> None:
    rng = np.random.default_rng(0)
    made, target = rng.normal(size=(2, 5, 3))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    scores = unit(made) @ unit(target).T / 0.2
    loss = 0.0
    for i in range(5):
        loss -= np.log(np.exp(scores[i, i]) / np.exp(scores[i]).sum()) / 10
        loss -= np.log(np.exp(scores[i, i]) / np.exp(scores[:, i]).sum()) / 10
    assert float(info_nce(torch.tensor(made), torch.tensor(target), 0.2)) == pytest.approx(loss)


def test_later_labels_do_not_move_aligned_vectors(world: World) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 2})
    samples = world.samples
    split = time_split(samples.ts, config.validation_fraction, config.holdout_fraction)
    label = np.where(samples.ts >= split.holdout_from, 1 - samples.label, samples.label).astype(np.float32)
    digests = {
        train_adapter(s, world.user_vectors, world.item_vectors, config, encoder_id="encoder").meta.weights_digest
        for s in (samples, replace(samples, label=label))
    }
    assert len(digests) == 1


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_aligned_vectors_of_users_and_items_meet_on_held_out_time(world: World, weight: float) -> None:
    config = CONFIG.model_copy(update={"knowledge_loss_weight": weight})
    trained = train_adapter(world.samples, world.user_vectors, world.item_vectors, config, encoder_id="encoder")
    samples = world.samples
    holdout = time_split(samples.ts, 0.1, 0.1).masks(samples.ts)[2]
    users = materialise_users(trained, world.user_vectors)[samples.user_row[holdout]]
    items = materialise_items(trained, world.item_vectors)[samples.item_row[holdout]]
    assert auc(samples.label[holdout], (users * items).sum(1)) > 0.65
    meta = trained.meta
    assert meta.best_epoch == int(np.argmin([e.valid_logloss for e in meta.epochs]))
    assert all(e.valid_auc == e.valid_knowledge_auc for e in meta.epochs)
    assert set(meta.gates) == {"user", "item"}
