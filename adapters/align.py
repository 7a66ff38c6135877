"""Alignment: augment vectors trained to be like collaborative embeddings, so that they belong to no CTR model.

After the idea of RLMRec and ClickPrompt: what texts say of users and items, and what interactions say of them, are two
views of one thing, so a contrastive loss (InfoNCE) can pull a vector made of texts to its owner's collaborative one.
"""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.collaborative import Interactions
from adapters.config import AdapterConfig
from adapters.features import AdaptedKnowledge, KnowledgeHead
from adapters.fit import EpochReport, Fitted, probabilities, reproducible
from adapters.measures import auc, logloss
from adapters.samples import Samples


def info_nce(made: Tensor, target: Tensor, temperature: float) -> Tensor:
    """InfoNCE, a scalar, of b pairs: row i of each [b, d] tensor belongs together, all others do not.

    loss = -(1 / 2b) sum_i (ln softmax_j(s_ij)[i] + ln softmax_j(s_ji)[i]),   s_ij = cos(made_i, target_j) / temperature
    """
    scores = F.normalize(made, dim=1) @ F.normalize(target, dim=1).T / temperature
    own = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def align(
    knowledge: AdaptedKnowledge,
    samples: Samples,
    masks: tuple[np.ndarray, np.ndarray, np.ndarray],
    config: AdapterConfig,
    *,
    progress: Callable[[EpochReport], None] | None = None,
) -> Fitted:
    """The knowledge module left at the epoch of the best validation log loss of its head; no CTR model takes part.

    loss = align_weight * (InfoNCE(a_u, e_u) + InfoNCE(a_i, e_i)) / 2 + knowledge_loss_weight * BCE(head(knowledge))

    by AdamW, over the distinct users and items of each batch that have a text vector and a collaborative embedding e
    (the factors of `Interactions`, of the training samples). With `knowledge_loss_weight` 0 the head learns beside the
    vectors, to choose an epoch by, and does not shape them. In the reports every measure is of the head, and
    `train_loss` the mean of `loss`. `masks` are training, validation and holdout rows.
    """
    train, valid, holdout = (np.flatnonzero(m) for m in masks)
    device = config.device
    known = Interactions.fit(samples, masks[0], knowledge.out_dim, config.seed)
    sides = [
        (entity, np.where((e != 0).any(axis=1)[entity], row, -1), tower, torch.from_numpy(e).float().to(device))
        for entity, row, tower, e in (
            (samples.user, samples.user_row, knowledge.user, known.users),
            (samples.item, samples.item_row, knowledge.item, known.items),
        )
    ]
    head = KnowledgeHead(knowledge).to(device)
    labels = torch.from_numpy(samples.label).to(device)
    optimiser = torch.optim.AdamW(
        [
            {"params": list(knowledge.parameters()), "weight_decay": config.adapter_weight_decay},
            {"params": list(head.parameters()), "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    shaping = config.knowledge_loss_weight > 0
    epochs: list[EpochReport] = []
    best, best_loss, best_state = 0, np.inf, _copy(knowledge)
    rng = np.random.default_rng(config.seed)
    with torch.random.fork_rng(devices=[]), reproducible():
        torch.manual_seed(config.seed)
        for epoch in range(config.max_epochs):
            started = perf_counter()
            knowledge.train()
            total, order = 0.0, rng.permutation(train)
            for lo in range(0, len(order), config.batch_size):
                rows = order[lo : lo + config.batch_size]
                index = torch.from_numpy(rows).to(device)
                features = knowledge(index)
                bce = F.binary_cross_entropy_with_logits(
                    head(features if shaping else features.detach()), labels[index]
                )
                loss = bce * (config.knowledge_loss_weight if shaping else 1.0)
                for entity, row, tower, target in sides:
                    codes, vectors = _distinct(entity[rows], row[rows])
                    if len(codes) > 1:
                        made = tower(torch.from_numpy(vectors).to(device))
                        likeness = info_nce(made, target[codes], config.align_temperature)
                        loss = loss + config.align_weight * likeness / 2
                total += float(loss.detach()) * len(rows)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            measures = {
                f"{part}_{of}{name}": measure
                for part, positions in (("valid", valid), ("holdout", holdout))
                for name, measure in _measures(knowledge, head, samples, positions, device).items()
                for of in ("", "knowledge_")
            }
            report = EpochReport(
                epoch=epoch, train_loss=total / len(order), seconds=perf_counter() - started, **measures
            )
            epochs.append(report)
            if progress is not None:
                progress(report)
            if report.valid_logloss < best_loss:
                best, best_loss, best_state = epoch, report.valid_logloss, _copy(knowledge)
            elif epoch - best >= config.patience:
                break
    knowledge.load_state_dict(best_state)
    return Fitted(tuple(epochs), best)


def _distinct(entity: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the distinct entities among samples with a `row` that is not -1, and the row of one sample of each."""
    usable = np.flatnonzero(row >= 0)
    codes, first = np.unique(entity[usable], return_index=True)
    return codes, row[usable][first]


def _measures(
    knowledge: AdaptedKnowledge, head: KnowledgeHead, samples: Samples, rows: np.ndarray, device: str
) -> dict[str, float]:
    def score(index: Tensor) -> Tensor:
        logits: Tensor = head(knowledge(index))
        return logits

    label, made = samples.label[rows], probabilities(score, knowledge, device, rows)
    return {"auc": auc(label, made), "logloss": logloss(label, made)}


def _copy(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
