"""What knowledge adds to a CTR model on held-out time: AUC and log loss with it, without it, and with it shuffled.

Arms differ in their knowledge only: same samples, fields, seeds, id masking and early stopping.

    base        no knowledge
    knowledge   the published augment vectors, as joined
    shuffled    text vectors dealt to other users and other items, an adapter trained on those as the published one
                was on the true ones, and its vectors: what a model gains from more inputs, but not from what they say
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from adapters.backbone import CtrModel
from adapters.config import AdapterConfig, Backbone, CtrConfig
from adapters.features import StoredKnowledge
from adapters.fit import fit, predict
from adapters.lift.shuffles import deal_to_others
from adapters.materialise import materialise_items, materialise_users
from adapters.measures import auc, bootstrap_auc_difference, logloss
from adapters.samples import Samples, time_split
from adapters.train import fit_projection, known_items, train_adapter
from adapters.trained import AdapterMeta, TrainedAdapter
from warehouse.errors import InputError

Arm = Literal["base", "knowledge", "shuffled"]
# A part of the holdout: `all`, `new_items`, and what the caller names.
Slice = str


class LiftConfig(CtrConfig, frozen=True, extra="forbid"):
    """The CTR model that is measured, and how often."""

    arms: tuple[Arm, ...] = ("base", "knowledge", "shuffled")
    # Every arm is fitted once per seed; a seed sets initial weights, order of samples, masking and the shuffle.
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    validation_fraction: float = Field(0.1, gt=0, lt=0.5)
    holdout_fraction: float = Field(0.1, gt=0, lt=0.5)
    bootstrap_draws: int = Field(500, ge=1)


@dataclass(frozen=True)
class Augment:
    """Augment vectors per sample: `user`, `item` [n, out], anything where `has_user`, `has_item` [n] is false."""

    user: np.ndarray
    item: np.ndarray
    has_user: np.ndarray
    has_item: np.ndarray

    @classmethod
    def of(cls, adapter: TrainedAdapter, samples: Samples, user_vectors: np.ndarray, item_vectors: np.ndarray) -> Self:
        """What joining the adapter's published rows to the samples would give."""
        has_user, has_item = samples.user_row >= 0, samples.item_row >= 0
        width = adapter.meta.config.out_dim
        user, item = (np.zeros((len(samples), width), dtype=np.float32) for _ in range(2))
        user[has_user] = materialise_users(adapter, user_vectors)[samples.user_row[has_user]]
        item[has_item] = materialise_items(adapter, item_vectors)[samples.item_row[has_item]]
        return cls(user, item, has_user, has_item)


class Measure(BaseModel, frozen=True, extra="forbid"):
    """AUC and log loss (nats) of an arm on a slice of the holdout, per seed; null where the slice lacks a class."""

    samples: int
    auc: float | None
    logloss: float | None
    auc_by_seed: tuple[float | None, ...]
    logloss_by_seed: tuple[float | None, ...]


class Difference(BaseModel, frozen=True, extra="forbid"):
    """AUC of an arm less that of `base`, mean over seeds, with a 95 % paired bootstrap interval over users."""

    arm: Arm
    part: Slice
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    logloss: float | None


class LiftReport(BaseModel, frozen=True, extra="forbid"):
    """`measures[arm][slice]` and the differences to `base`; `new_items` are holdout samples of untrained items.

    `samples` counts by split, and those of a slice of the holdout under `holdout_<slice>`.
    """

    backbone: Backbone
    seeds: tuple[int, ...]
    samples: dict[str, int]
    measures: dict[Arm, dict[Slice, Measure]]
    differences: tuple[Difference, ...]
    seconds: dict[Arm, float]


def measure_lift(
    samples: Samples,
    published: Augment,
    user_vectors: np.ndarray,
    item_vectors: np.ndarray,
    config: LiftConfig,
    adapter: AdapterMeta,
    *,
    parts: Mapping[Slice, np.ndarray] | None = None,
    progress: Callable[[Arm, int, float], None] | None = None,
) -> LiftReport:
    """Each arm's measures on the newest samples, and what each adds to `base`.

    `published` holds the joined vectors, row for row the samples; the text vectors [rows, d] that `samples.user_row`
    and `.item_row` index are only for the shuffled arm, which trains its own adapter by `adapter.config`. `parts` are
    further slices by name, masks [n] over the samples. `progress` is told (arm, seed, seconds) after each fit.

    Raises InputError when the published adapter was fitted or chosen on events of this holdout, and when columns
    differ in length.
    """
    split = time_split(samples.ts, config.validation_fraction, config.holdout_fraction)
    _check(published, samples, adapter, split.holdout_from)
    masks = split.masks(samples.ts)
    known = known_items(samples, masks[0])
    holdout = np.flatnonzero(masks[2])
    slices: dict[Slice, np.ndarray] = {
        "all": np.ones(len(holdout), dtype=bool),
        "new_items": ~known[samples.item[holdout]],
        **{name: mask[holdout] for name, mask in (parts or {}).items()},
    }
    scores: dict[Arm, np.ndarray] = {}
    seconds: dict[Arm, float] = {}
    for arm in config.arms:
        by_seed = []
        for seed in config.seeds:
            started = perf_counter()
            seeded = config.model_copy(update={"seed": seed})
            knowledge = None
            if arm != "base":
                augment = published
                if arm == "shuffled":
                    augment = _shuffled(samples, user_vectors, item_vectors, adapter, seed)
                knowledge = StoredKnowledge(
                    augment.user, augment.item, augment.has_user, augment.has_item, config.device
                )
            model = CtrModel(samples, known, seeded, knowledge.dim if knowledge else 0)
            fit(model, knowledge, samples, masks, seeded)
            by_seed.append(predict(model, knowledge, holdout))
            seconds[arm] = seconds.get(arm, 0.0) + perf_counter() - started
            if progress is not None:
                progress(arm, seed, perf_counter() - started)
        scores[arm] = np.stack(by_seed)
    label, user = samples.label[holdout], samples.user[holdout]
    measures: dict[Arm, dict[Slice, Measure]] = {
        arm: {part: _measure(label[rows], score[:, rows]) for part, rows in slices.items()}
        for arm, score in scores.items()
    }
    differences = [
        _difference(arm, part, label[rows], scores["base"][:, rows], score[:, rows], user[rows], config.bootstrap_draws)
        for arm, score in scores.items()
        if arm != "base" and "base" in scores
        for part, rows in slices.items()
    ]
    counts = dict(zip(("train", "validation", "holdout"), (int(m.sum()) for m in masks), strict=True))
    return LiftReport(
        backbone=config.backbone,
        seeds=config.seeds,
        samples=counts | {f"holdout_{part}": int(rows.sum()) for part, rows in slices.items() if part != "all"},
        measures=measures,
        differences=tuple(differences),
        seconds=seconds,
    )


def _shuffled(
    samples: Samples, user_vectors: np.ndarray, item_vectors: np.ndarray, adapter: AdapterMeta, seed: int
) -> Augment:
    rng = np.random.default_rng(seed)
    users = deal_to_others(samples.user, samples.user_row, user_vectors, rng)
    items = deal_to_others(samples.item, samples.item_row, item_vectors, rng)
    config: AdapterConfig = adapter.config.model_copy(update={"seed": seed})
    if adapter.kind == "projection":
        refitted = fit_projection(users, items, config, encoder_id=adapter.encoder_id)
    else:
        refitted = train_adapter(samples, users, items, config, encoder_id=adapter.encoder_id)
    return Augment.of(refitted, samples, users, items)


def _check(published: Augment, samples: Samples, adapter: AdapterMeta, holdout_from: int) -> None:
    lengths = {len(c) for c in (published.user, published.item, published.has_user, published.has_item)}
    if lengths != {len(samples)}:
        raise InputError(
            f"{len(samples)} samples came with augment columns of {sorted(lengths)} rows; join the same impressions."
        )
    if adapter.holdout_from is not None and round(adapter.holdout_from.timestamp() * 1e6) > holdout_from:
        raise InputError(
            f"The adapter {adapter.version} was made from events up to {adapter.holdout_from.isoformat()}, which reach "
            "into this holdout: the lift would be measured on what it has learned. Set lift's holdout_fraction to at "
            f"most the adapter's ({adapter.config.holdout_fraction:g}), or train it with a larger one."
        )


def _mean(values: list[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def _finite(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _measure(label: np.ndarray, scores: np.ndarray) -> Measure:
    aucs = [_finite(auc(label, score)) for score in scores]
    losses = [_finite(logloss(label, score)) for score in scores]
    return Measure(
        samples=len(label),
        auc=_mean(aucs),
        logloss=_mean(losses),
        auc_by_seed=tuple(aucs),
        logloss_by_seed=tuple(losses),
    )


def _difference(
    arm: Arm, part: Slice, label: np.ndarray, base: np.ndarray, score: np.ndarray, user: np.ndarray, draws: int
) -> Difference:
    drawn = bootstrap_auc_difference(label, base, score, user, draws=draws, seed=0)
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Difference(
        arm=arm,
        part=part,
        auc=_finite(np.mean([auc(label, b) - auc(label, a) for a, b in zip(base, score, strict=True)])),
        auc_low=_finite(low),
        auc_high=_finite(high),
        logloss=_finite(np.mean([logloss(label, b) - logloss(label, a) for a, b in zip(base, score, strict=True)])),
    )
