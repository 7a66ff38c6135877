"""The frozen adapter: trained jointly with a library backbone on labelled behaviours, aligned with what behaviours
alone say (`adapters.align`), or projected without labels."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import torch
from torch import Tensor

from adapters.align import align
from adapters.backbone import CtrModel
from adapters.collaborative import Interactions, Side, reduction
from adapters.config import AdapterConfig
from adapters.features import AdaptedKnowledge, KnowledgeHead
from adapters.fit import EpochReport, Fitted, KnowledgeTraining, fit
from adapters.gates import gate_use
from adapters.samples import Samples, TimeSplit, time_split
from adapters.texts import UserTexts
from adapters.trained import Projection, Towers, TrainedAdapter, build_adapter, build_fusion, empty_norm
from adapters.whitening import InputNorm
from warehouse.errors import InputError

BATCH_ROWS = 1024

EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class NotTrainable(InputError):
    """The behaviours cannot teach an adapter; a label-free projection can stand in."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"No adapter can be trained: {why}. Until then a label-free projection of the texts stands in "
            "(adapter kind `projection`)."
        )


def train_adapter(
    samples: Samples,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    config: AdapterConfig,
    *,
    encoder_id: str,
    texts: UserTexts | None = None,
    progress: Callable[[EpochReport], None] | None = None,
) -> TrainedAdapter:
    """An adapter fitted on the older samples, chosen on newer, checked on the newest; by `config.objective` together
    with `config.backbone`, or by alignment.

    `user_vectors` [rows, d] and `item_vectors` [rows, d] are what `samples.user_row` and `.item_row` index. With
    `config.fusion` "attention", the `texts` that the user vectors are means of are fused by weights trained along;
    without `texts` each user vector counts as a single text. The holdout is never used for fitting or choosing, so
    lift may be measured on it. On one machine, equal input, seed and thread count give an equal version.

    Raises NotTrainable when labels or samples do not suffice.
    """
    split = _trainable_split(samples, config)
    masks = split.masks(samples.ts)
    train = masks[0]
    user_rows, item_rows = _rows(samples.user_row[train]), _rows(samples.item_row[train])
    norms, foretold = fit_norms(samples, train, user_vectors, item_vectors, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = build_adapter(config, user_vectors.shape[1], item_vectors.shape[1], norms)
        fusion = build_fusion(config, norms[0].out_dim if norms else user_vectors.shape[1])
        knowledge = AdaptedKnowledge(
            adapter, samples, user_vectors, item_vectors, config.device, fusion=fusion, texts=texts
        )
        fitted = _fit(knowledge, samples, masks, config, progress)
    knowledge.eval()
    inputs = _inputs(knowledge.user_inputs_of, user_rows), _inputs(knowledge.item_inputs_of, item_rows)
    with torch.no_grad():
        made = [
            torch.cat([mix(batch) for batch in torch.split(side, BATCH_ROWS)]).cpu()
            for mix, side in zip((adapter.mix_user, adapter.mix_item), inputs, strict=True)
        ]
    gates = gate_use(adapter, *inputs)
    towers = Towers(adapter.cpu(), None if fusion is None else fusion.cpu())
    towers.standardise(*made)
    return TrainedAdapter.seal(
        towers,
        config,
        "experts",
        encoder_id,
        train_from=_time(int(samples.ts.min())),
        valid_from=_time(split.valid_from),
        holdout_from=_time(split.holdout_from),
        train_samples=int(train.sum()),
        best_epoch=fitted.best,
        epochs=fitted.epochs,
        gates=gates,
        foretold=foretold,
    )


def fit_projection(
    user_vectors: np.ndarray, item_vectors: np.ndarray, config: AdapterConfig, *, encoder_id: str
) -> TrainedAdapter:
    """A label-free adapter: both sides' text vectors [rows, d], PCA-whitened together to `config.out_dim` numbers.

    For behaviours without usable labels. Raises InputError when there is no vector at all.
    """
    user_fit, item_fit = (v.astype(np.float32, copy=False) for v in (user_vectors, item_vectors))
    if user_fit.shape[1] == item_fit.shape[1]:
        norms = InputNorm.align(user_fit, item_fit, config.out_dim)
    else:
        norms = InputNorm.whiten(user_fit, config.out_dim), InputNorm.whiten(item_fit, config.out_dim)
    projection = Projection(*norms)
    towers = Towers(projection)
    towers.standardise(projection.user(torch.from_numpy(user_fit)), projection.item(torch.from_numpy(item_fit)))
    return TrainedAdapter.seal(towers, config, "projection", encoder_id)


def fit_norms(
    samples: Samples, train: np.ndarray, user_vectors: np.ndarray, item_vectors: np.ndarray, config: AdapterConfig
) -> tuple[tuple[InputNorm, InputNorm] | None, dict[str, tuple[float, ...]]]:
    """The norms that `components` and `collaborative` ask for, fitted on the vectors [rows, d] that samples of the mask
    `train` read, and what the texts of each side foretell. A side without any reads zeros."""
    if config.components is None:
        return None, {}
    known = Interactions.fit(samples, train, config.collaborative, config.seed) if config.collaborative else None
    norms: dict[Side, InputNorm] = {}
    foretold: dict[str, tuple[float, ...]] = {}
    sides: tuple[tuple[Side, np.ndarray, np.ndarray], ...] = (
        ("user", user_vectors, samples.user_row[train]),
        ("item", item_vectors, samples.item_row[train]),
    )
    for side, vectors, row in sides:
        norms[side] = empty_norm(config, vectors.shape[1])
        if (row >= 0).any():
            components = min(config.components, vectors.shape[1])
            norms[side], explained = reduction(known, side, vectors, row, components, config.whitening, config.seed)
            foretold[side] = tuple(explained.tolist())
    return (norms["user"], norms["item"]), foretold


def known_items(samples: Samples, train: np.ndarray) -> np.ndarray:
    """Which item codes have an interaction among the `train` rows. bool [items]."""
    known = np.zeros(len(samples.items), dtype=bool)
    known[samples.item[train]] = True
    return known


def _fit(
    knowledge: AdaptedKnowledge,
    samples: Samples,
    masks: tuple[np.ndarray, np.ndarray, np.ndarray],
    config: AdapterConfig,
    progress: Callable[[EpochReport], None] | None,
) -> Fitted:
    if config.objective == "align":
        return align(knowledge, samples, masks, config, progress=progress)
    model = CtrModel(samples, known_items(samples, masks[0]), config, knowledge.dim)
    training = KnowledgeTraining(
        head=KnowledgeHead(knowledge).to(config.device) if config.knowledge_loss_weight else None,
        head_weight=config.knowledge_loss_weight,
        weight_decay=config.adapter_weight_decay,
    )
    return fit(model, knowledge, samples, masks, config, training=training, progress=progress)


def _inputs(inputs_of: Callable[[Tensor], Tensor], rows: np.ndarray) -> Tensor:
    """What a tower reads of vector rows, made batch by batch."""
    with torch.no_grad():
        return torch.cat([inputs_of(batch) for batch in torch.split(torch.from_numpy(rows), BATCH_ROWS)])


def _trainable_split(samples: Samples, config: AdapterConfig) -> TimeSplit:
    try:
        split = time_split(samples.ts, config.validation_fraction, config.holdout_fraction)
    except InputError as error:
        raise NotTrainable(str(error).rstrip(".")) from error
    train, valid, _ = split.masks(samples.ts)
    for part, mask in (("training", train), ("validation", valid)):
        positives = int(samples.label[mask].sum())
        if positives in (0, int(mask.sum())):
            raise NotTrainable(
                f"{positives} of {int(mask.sum())} {part} samples are positive, and it takes both kinds. Ratings need "
                "a threshold that divides them, clicks need the impressions that were not clicked"
            )
    informed = int((train & ((samples.user_row >= 0) | (samples.item_row >= 0))).sum())
    if informed < config.min_samples:
        raise NotTrainable(
            f"{informed} training samples have knowledge, and the minimum is {config.min_samples} (`min_samples`)"
        )
    return split


def _rows(rows: np.ndarray) -> np.ndarray:
    """The distinct vector rows among sample references, -1 left out."""
    distinct = np.unique(rows)
    return distinct[distinct >= 0]


def _time(micros: int) -> datetime:
    return EPOCH_START + timedelta(microseconds=micros)
