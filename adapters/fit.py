"""Fitting a CTR model, with or without knowledge, with early stopping on validation time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from pydantic import BaseModel
from torch import nn

from adapters.backbone import CtrConfig, CtrModel
from adapters.features import Knowledge
from adapters.measures import auc, logloss
from adapters.samples import Samples

EVAL_ROWS = 8192


class EpochReport(BaseModel, frozen=True, extra="forbid"):
    """One epoch: mean training loss, and AUC and log loss (natural) on validation and holdout."""

    epoch: int
    train_loss: float
    valid_auc: float
    valid_logloss: float
    holdout_auc: float
    holdout_logloss: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """What fitting saw. The modules are left as they were after `epochs[best]`."""

    epochs: tuple[EpochReport, ...]
    best: int


def fit(
    model: CtrModel,
    knowledge: Knowledge | None,
    samples: Samples,
    masks: tuple[np.ndarray, np.ndarray, np.ndarray],
    config: CtrConfig,
    *,
    knowledge_weight_decay: float | None = None,
    progress: Callable[[EpochReport], None] | None = None,
) -> Fitted:
    """The model and its knowledge module, trained together and left at the epoch of the best validation AUC.

    Binary cross-entropy, AdamW, item ids masked at random in training. `masks` are training, validation and holdout
    rows; the holdout is only reported, nothing is chosen by it. The same seed, data and thread count give the same
    weights. The caller's random state is left as it was.
    """
    train, valid, holdout = (np.flatnonzero(m) for m in masks)
    groups = [{"params": list(model.parameters()), "weight_decay": config.weight_decay}]
    if knowledge is not None and any(p.requires_grad for p in knowledge.parameters()):
        decay = config.weight_decay if knowledge_weight_decay is None else knowledge_weight_decay
        groups.append({"params": list(knowledge.parameters()), "weight_decay": decay})
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate)
    modules = [model] if knowledge is None else [model, knowledge]
    labels = torch.from_numpy(samples.label).to(config.device)
    rng = np.random.default_rng(config.seed)
    loss_of = nn.BCEWithLogitsLoss()
    epochs: list[EpochReport] = []
    best, best_auc = 0, -np.inf
    best_states = [copy.deepcopy(m.state_dict()) for m in modules]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        for epoch in range(config.max_epochs):
            started = perf_counter()
            for m in modules:
                m.train()
            total = 0.0
            order = rng.permutation(train)
            for lo in range(0, len(order), config.batch_size):
                rows = order[lo : lo + config.batch_size]
                index = torch.from_numpy(rows).to(config.device)
                masked = torch.from_numpy(rng.random(len(rows)) < config.id_mask).to(config.device)
                logits = model(index, None if knowledge is None else knowledge(index), masked)
                loss = loss_of(logits, labels[index])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            report = EpochReport(
                epoch=epoch,
                train_loss=total / len(order),
                **_measures(model, knowledge, samples, valid, "valid"),
                **_measures(model, knowledge, samples, holdout, "holdout"),
                seconds=perf_counter() - started,
            )
            epochs.append(report)
            if progress is not None:
                progress(report)
            if report.valid_auc > best_auc:
                best, best_auc = epoch, report.valid_auc
                best_states = [copy.deepcopy(m.state_dict()) for m in modules]
            elif epoch - best >= config.patience:
                break
    for m, state in zip(modules, best_states, strict=True):
        m.load_state_dict(state)
    return Fitted(tuple(epochs), best)


def predict(model: CtrModel, knowledge: Knowledge | None, rows: np.ndarray) -> np.ndarray:
    """Click probabilities [rows] of samples by position, float32, with every item id shown."""
    modules = [model] if knowledge is None else [model, knowledge]
    for m in modules:
        m.eval()
    parts = []
    with torch.inference_mode():
        for lo in range(0, len(rows), EVAL_ROWS):
            index = torch.from_numpy(rows[lo : lo + EVAL_ROWS]).to(model.config.device)
            logits = model(index, None if knowledge is None else knowledge(index))
            parts.append(logits.sigmoid().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _measures(
    model: CtrModel, knowledge: Knowledge | None, samples: Samples, rows: np.ndarray, part: str
) -> dict[str, float]:
    probability, label = predict(model, knowledge, rows), samples.label[rows]
    return {f"{part}_auc": auc(label, probability), f"{part}_logloss": logloss(label, probability)}
