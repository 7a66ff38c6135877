"""What the finished cells say: measures per arm, and differences between arms with intervals.

An interval is a paired bootstrap: users are resampled, and the seeds that both arms have; both arms are judged on the
same resample. So it covers both chance in who was measured and chance in how the model was fitted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from adapters.config import Backbone
from adapters.lift.arms import DAY_US
from adapters.lift.config import Arm, Protocol
from adapters.lift.matrix import Cell, Matrix, finite
from adapters.lift.splits import event_places
from adapters.measures import (
    auc,
    calibration_error,
    gauc,
    logloss,
    resample_users,
    resampled_aucs,
    user_aucs,
)

# A slice of fewer samples has no interval worth reading.
MIN_SLICE = 300
# Beside `base`, what `full` must beat to be more than clustering, titles or chance.
CONTROLS: tuple[Arm, ...] = (
    "base_unmasked",
    "base_history",
    "titles",
    "histories",
    "random",
    "shuffled",
    "facts",
    "group_ids",
    "groups_shuffled",
    "mlp",
)
BOOTSTRAP_SEED = 0


class Interval(BaseModel, frozen=True, extra="forbid"):
    """A mean over seeds and users with its 95 % interval; null where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def is_above_zero(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        return self.high is not None and self.high < 0


class ArmMeasure(BaseModel, frozen=True, extra="forbid"):
    """An arm on a part of the test samples: means over seeds; `auc_spread` is the standard deviation over seeds."""

    protocol: Protocol
    backbone: Backbone
    part: str
    arm: Arm
    seeds: int
    samples: int
    auc: float | None
    auc_spread: float | None
    gauc: float | None
    logloss: float | None
    calibration_error: float | None


class Difference(BaseModel, frozen=True, extra="forbid"):
    """`arm` less `against` on a part of the test samples; less log loss is better. `auc_relative` is a fraction."""

    protocol: Protocol
    backbone: Backbone
    part: str
    arm: Arm
    against: Arm
    seeds: int
    auc: Interval
    auc_relative: float | None
    gauc: Interval
    logloss: Interval


class Kept(BaseModel, frozen=True, extra="forbid"):
    """What is left of joint training's lift when the adapter was trained with `frozen_with` and then frozen: means of
    AUC less base over the other `backbones`, and the second lift's share of the first.

    The share is null where the interval of the joint lift touches zero: there is nothing to keep.
    """

    protocol: Protocol
    frozen_with: Backbone
    backbones: tuple[Backbone, ...]
    seeds: int
    joint: Interval
    frozen: Interval
    share: Interval


@dataclass(frozen=True)
class _Model:
    """One cell on one part: its measures, and those of each resample [draws]."""

    auc: float
    gauc: float
    logloss: float
    calibration: float
    aucs: np.ndarray
    gaucs: np.ndarray
    losses: np.ndarray


def compare(matrix: Matrix) -> tuple[list[ArmMeasure], list[Difference], list[Kept]]:
    """Measures and differences of all parts, over the cells that are done, and what frozen adapters kept."""
    done: dict[tuple[Protocol, Backbone], dict[Arm, dict[int, Cell]]] = {}
    for cell in matrix.cells():
        if matrix.find(cell) is not None:
            done.setdefault((cell.protocol, cell.backbone), {}).setdefault(cell.arm, {})[cell.seed] = cell
    measures: list[ArmMeasure] = []
    differences: list[Difference] = []
    whole: dict[Protocol, dict[Backbone, dict[Arm, dict[int, _Model]]]] = {}
    for (protocol, backbone), arms in done.items():
        scores = {arm: {seed: matrix.scores(cell) for seed, cell in cells.items()} for arm, cells in arms.items()}
        seeds = sorted({seed for cells in arms.values() for seed in cells})
        parts = {seed: dict(parts_of_test(matrix, protocol, seed)) for seed in seeds}
        for part in parts[seeds[0]]:
            if not all(part in named for named in parts.values()):
                continue
            rows = {seed: parts[seed][part] for seed in seeds}
            models = _resampled(matrix, protocol, rows, scores)
            place = {"protocol": protocol, "backbone": backbone, "part": part}
            size = round(float(np.mean([len(r) for r in rows.values()])))
            measures += [_measure(place, arm, size, by_seed) for arm, by_seed in models.items()]
            differences += [_difference(place, *pair, models) for pair in _pairs(models)]
            if part == "all":
                whole.setdefault(protocol, {})[backbone] = models
    kept = [_kept(protocol, models, matrix.config.frozen_with) for protocol, models in whole.items()]
    return measures, differences, [found for found in kept if found is not None]


def parts_of_test(matrix: Matrix, protocol: Protocol, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Named parts of a protocol's test samples, as positions among them: all, and slices large enough to judge.

    Slices are by the item's training events, by how many events the user had before, by the age of the user's text,
    and by whose knowledge there was.
    """
    split = matrix.split(protocol, seed)
    samples, test = split.samples, split.test
    yield "all", np.arange(len(test))
    trained = np.bincount(samples.item[split.train], minlength=len(samples.items))[samples.item[test]]
    before = event_places(samples.user)[0][test]
    slicings = [
        _bands("item with {} training events", trained, (0, 1, 10, 100)),
        _bands("user with {} earlier events", before, (0, 10, 30, 100)),
    ]
    ages = _text_ages(matrix, protocol, seed)
    if ages is not None:
        # No text yet counts as an age below 0.
        slicings.append(_bands("user text of {} days", ages, (0, 7, 30, 90, 365)))
        slicings.append(iter([("no user text", ages < 0)]))
    if matrix.data.rungs is not None:
        rungs = matrix.data.rungs[test]
        slicings.append(iter([(str(rung), rungs == rung) for rung in np.unique(rungs)]))
    for slicing in slicings:
        named = [(name, np.flatnonzero(mask)) for name, mask in slicing]
        usable = [(name, rows) for name, rows in named if len(rows) >= MIN_SLICE]
        # A slice that holds everything says nothing new.
        yield from ((name, rows) for name, rows in usable if len(rows) < len(test))


def _bands(name: str, value: np.ndarray, starts: Sequence[int]) -> Iterator[tuple[str, np.ndarray]]:
    for low, high in zip(starts, [*starts[1:], None], strict=True):
        if high is None:
            yield name.format(f"{low} or more"), value >= low
        elif high == low + 1:
            yield name.format(low), value == low
        else:
            yield name.format(f"{low} to {high - 1}"), (value >= low) & (value < high)


def _text_ages(matrix: Matrix, protocol: Protocol, seed: int) -> np.ndarray | None:
    """Days since the user's text came to hold, per test sample, -1 for none; None where no text tells of users."""
    source = matrix.data.sources.get("summaries")
    if source is None:
        return None
    split = matrix.split(protocol, seed)
    rows = source.rows(split.samples.ts)[split.test]
    ages = (split.samples.ts[split.test] - source.valid_from[rows]) / DAY_US
    return np.where(rows >= 0, ages, -1.0)


def _resampled(
    matrix: Matrix, protocol: Protocol, rows: dict[int, np.ndarray], scores: dict[Arm, dict[int, np.ndarray]]
) -> dict[Arm, dict[int, _Model]]:
    """Each cell on the `rows` of its seed. All seeds are judged on the same resamples of users."""
    everyone = resample_users(len(matrix.data.samples.users), matrix.config.bootstrap_draws, BOOTSTRAP_SEED)
    models: dict[Arm, dict[int, _Model]] = {arm: {} for arm in scores}
    for seed, part in rows.items():
        split = matrix.split(protocol, seed)
        label = split.samples.label[split.test][part]
        codes, user = np.unique(split.samples.user[split.test][part], return_inverse=True)
        drawn, users = everyone[:, codes], len(codes)
        count = np.bincount(user, minlength=users)
        for arm, by_seed in scores.items():
            if seed in by_seed:
                models[arm][seed] = _judged(label, by_seed[seed][part], user, count, drawn)
    return models


def _judged(label: np.ndarray, score: np.ndarray, user: np.ndarray, count: np.ndarray, drawn: np.ndarray) -> _Model:
    inside = user_aucs(label, score, user, len(count))
    weighed = count * np.isfinite(inside)
    p = np.clip(score.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = np.bincount(user, weights=-np.where(label > 0, np.log(p), np.log1p(-p)), minlength=len(count))
    with np.errstate(invalid="ignore"):
        gaucs = drawn @ np.nan_to_num(inside * weighed) / (drawn @ weighed)
        losses = drawn @ loss / (drawn @ count)
    return _Model(
        auc=auc(label, score),
        gauc=gauc(label, score, user),
        logloss=logloss(label, score),
        calibration=calibration_error(label, score),
        aucs=resampled_aucs(label, score, user, drawn),
        gaucs=gaucs,
        losses=losses,
    )


def _pairs(models: dict[Arm, dict[int, _Model]]) -> list[tuple[Arm, Arm]]:
    pairs: list[tuple[Arm, Arm]] = []
    if "base" in models:
        pairs += [(arm, "base") for arm in models if arm != "base"]
    if "full" in models:
        pairs += [("full", control) for control in CONTROLS if control in models]
    if {"full", "frozen"} <= set(models):
        pairs.append(("frozen", "full"))
    if "full_titles" in models:
        pairs += [("full_titles", control) for control in ("titles", "full") if control in models]
    if "groups" in models:
        pairs += [("groups", control) for control in ("group_ids", "groups_shuffled") if control in models]
    return [pair for pair in pairs if set(models[pair[0]]) & set(models[pair[1]])]


def _measure(place: dict[str, str], arm: Arm, samples: int, by_seed: dict[int, _Model]) -> ArmMeasure:
    models = list(by_seed.values())
    aucs = [m.auc for m in models]
    return ArmMeasure.model_validate(
        {
            **place,
            "arm": arm,
            "seeds": len(models),
            "samples": samples,
            "auc": finite(float(np.mean(aucs))),
            "auc_spread": finite(float(np.std(aucs, ddof=1))) if len(aucs) > 1 else None,
            "gauc": finite(float(np.mean([m.gauc for m in models]))),
            "logloss": finite(float(np.mean([m.logloss for m in models]))),
            "calibration_error": finite(float(np.mean([m.calibration for m in models]))),
        }
    )


def _difference(place: dict[str, str], arm: Arm, against: Arm, models: dict[Arm, dict[int, _Model]]) -> Difference:
    seeds = sorted(set(models[arm]) & set(models[against]))
    pairs = [(models[arm][seed], models[against][seed]) for seed in seeds]
    auc_of = paired_interval([a.auc - b.auc for a, b in pairs], np.stack([a.aucs - b.aucs for a, b in pairs]))
    base = float(np.mean([b.auc for _, b in pairs]))
    return Difference.model_validate(
        {
            **place,
            "arm": arm,
            "against": against,
            "seeds": len(seeds),
            "auc": auc_of,
            "auc_relative": None if auc_of.value is None else auc_of.value / base,
            "gauc": paired_interval(
                [a.gauc - b.gauc for a, b in pairs], np.stack([a.gaucs - b.gaucs for a, b in pairs])
            ),
            "logloss": paired_interval(
                [a.logloss - b.logloss for a, b in pairs], np.stack([a.losses - b.losses for a, b in pairs])
            ),
        }
    )


def _kept(
    protocol: Protocol, models: dict[Backbone, dict[Arm, dict[int, _Model]]], frozen_with: Backbone
) -> Kept | None:
    """None where no other backbone has the three arms."""
    wanted: tuple[Arm, ...] = ("base", "full", "frozen")
    others = [b for b, arms in models.items() if b != frozen_with and all(arms.get(arm) for arm in wanted)]
    seeds = sorted(set.intersection(*(set(models[b][arm]) for b in others for arm in wanted))) if others else []
    if not seeds:
        return None

    def mean(measure: Callable[[_Model], np.ndarray]) -> dict[Arm, np.ndarray]:
        """Per arm [seeds, ...], over the backbones."""
        return {
            arm: np.stack([np.mean([measure(models[b][arm][seed]) for b in others], axis=0) for seed in seeds])
            for arm in wanted
        }

    value, drawn = mean(lambda m: np.asarray(m.auc)), mean(lambda m: m.aucs)
    lifts = {arm: (value[arm] - value["base"], drawn[arm] - drawn["base"]) for arm in ("full", "frozen")}
    joint, frozen = (paired_interval(one.tolist(), each) for one, each in lifts.values())
    share = Interval(value=None, low=None, high=None)
    if joint.is_above_zero:
        chosen = _seed_draws(*drawn["base"].shape)
        resampled = [each[chosen, np.arange(each.shape[1])[:, None]].mean(axis=1) for _, each in lifts.values()]
        low, high = np.quantile(resampled[1] / resampled[0], [0.025, 0.975])
        kept = float(lifts["frozen"][0].mean() / lifts["full"][0].mean())
        share = Interval(value=kept, low=finite(low), high=finite(high))
    return Kept(
        protocol=protocol, frozen_with=frozen_with, backbones=tuple(others), seeds=len(seeds), joint=joint,
        frozen=frozen, share=share,
    )  # fmt: skip


def _seed_draws(seeds: int, draws: int) -> np.ndarray:
    """Which seeds each resample takes, [draws, seeds], with replacement."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(0, seeds, (draws, seeds))


def paired_interval(values: Sequence[float], drawn: np.ndarray) -> Interval:
    """The mean of `values` over seeds with the 2.5 % and 97.5 % quantiles of resampled users and seeds.

    `drawn` [seeds, draws] are the differences of each seed in each resample of users; each draw takes seeds with
    replacement.
    """
    chosen = _seed_draws(*drawn.shape)
    means = drawn[chosen, np.arange(drawn.shape[1])[:, None]].mean(axis=1)
    means = means[np.isfinite(means)]
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (np.nan, np.nan)
    return Interval(value=finite(float(np.mean(values))), low=finite(low), high=finite(high))
