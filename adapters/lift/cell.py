"""One cell of the matrix: a model fitted on a split with what its arm knows, and its scores on the test samples."""

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from adapters.backbone import CtrModel
from adapters.config import Backbone
from adapters.fit import Fitted, KnowledgeTraining, fit, predict
from adapters.lift.arms import ArmSpec, known_to
from adapters.lift.config import MatrixConfig
from adapters.lift.data import LiftData
from adapters.lift.splits import Split
from adapters.lift.towers import CellHead, CellKnowledge
from adapters.samples import Samples
from adapters.train import known_items


@dataclass(frozen=True)
class Scored:
    """Click probabilities of the split's test samples, float32 [test], and what fitting took."""

    scores: np.ndarray
    epochs: int
    best_epoch: int
    valid_auc: float
    valid_logloss: float
    seconds: float


def run_cell(
    data: LiftData, split: Split, spec: ArmSpec, backbone: Backbone, seed: int, config: MatrixConfig
) -> Scored:
    """The scores of one arm. The epoch is chosen by log loss on the split's validation samples."""
    started = perf_counter()
    length = config.kar_history_length if split.protocol == "kar" else config.history_length
    if spec.long_history:
        length = config.long_history_length
    samples = newest_events(split.samples, length)
    id_mask = config.cold_id_mask if split.protocol == "cold_items" else config.ctr.id_mask
    ctr = config.ctr.model_copy(update={"seed": seed, "id_mask": id_mask if spec.id_mask else 0.0})
    masks = np.zeros((3, len(samples)), dtype=bool)
    masks[0][split.train] = True
    masks[1][split.valid] = True
    known = known_to(spec, data, split, seed)
    knowledge = None
    if known.item is not None or known.user is not None:
        knowledge = CellKnowledge(known, samples, split.train, config.tower, seed, ctr.device, spec.mlp)
    masks_of = masks[0], masks[1], masks[2]

    def fitted_with(backbone: Backbone, training: KnowledgeTraining | None) -> tuple[CtrModel, Fitted]:
        named = ctr.model_copy(update={"backbone": backbone})
        dim = knowledge.dim if knowledge else 0
        model = CtrModel(samples, known_items(samples, masks[0]), named, dim, fields=known.fields)
        # No test row is given: nothing is measured on them while fitting.
        return model, fit(model, knowledge, samples, masks_of, named, training=training)

    training = None
    if knowledge is not None:
        tower = config.tower
        head = CellHead(knowledge).to(ctr.device) if tower.head_weight else None
        training = KnowledgeTraining(head, tower.head_weight, tower.weight_decay, head_chooses=False)
        if spec.frozen:
            fitted_with(config.frozen_with, training)
            knowledge.requires_grad_(False)
            training = None
    model, fitted = fitted_with(backbone, training)
    best = fitted.epochs[fitted.best]
    return Scored(
        scores=predict(model, knowledge, split.test),
        epochs=len(fitted.epochs),
        best_epoch=fitted.best,
        valid_auc=best.valid_auc,
        valid_logloss=best.valid_logloss,
        seconds=perf_counter() - started,
    )


def newest_events(samples: Samples, length: int) -> Samples:
    """The samples with at most `length` events of each kind in their histories."""
    return replace(samples, liked=samples.liked[:, :length], disliked=samples.disliked[:, :length])
