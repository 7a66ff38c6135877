from pathlib import Path

import numpy as np
import pytest

from adapters.lift.compare import MIN_SLICE, compare, paired_interval, parts_of_test
from adapters.lift.config import MatrixConfig
from adapters.lift.data import LiftData
from adapters.lift.matrix import Cell, Matrix
from adapters.measures import auc, bootstrap_auc_difference, gauc, logloss
from tests.adapters.lift.worlds import SMALL


def test_measures_and_differences_are_those_of_the_stored_scores(matrix: Matrix) -> None:
    measures, differences, _ = compare(matrix)
    split = matrix.split("time", 0)
    label, user = split.samples.label[split.test], split.samples.user[split.test]
    parts = dict(parts_of_test(matrix, "time", 0))
    assert {m.part for m in measures} == set(parts)
    scores = {
        arm: np.stack([matrix.scores(Cell("time", "DeepFM", arm, seed)) for seed in (0, 1)])
        for arm in ("base", "titles", "full")
    }
    for m in measures:
        rows = parts[m.part]
        assert m.samples == len(rows)
        for name, measure in (("auc", auc), ("logloss", logloss)):
            assert getattr(m, name) == pytest.approx(np.mean([measure(label[rows], s[rows]) for s in scores[m.arm]]))
        assert m.gauc == pytest.approx(np.mean([gauc(label[rows], s[rows], user[rows]) for s in scores[m.arm]]))
    assert {(d.arm, d.against) for d in differences} == {("titles", "base"), ("full", "base"), ("full", "titles")}
    by = {(m.part, m.arm): m for m in measures}
    for d in differences:
        one, other = by[d.part, d.arm], by[d.part, d.against]
        assert d.auc.value == pytest.approx(one.auc - other.auc)
        assert d.auc_relative == pytest.approx(one.auc / other.auc - 1)
        assert d.gauc.value == pytest.approx(one.gauc - other.gauc)
        assert d.logloss.value == pytest.approx(one.logloss - other.logloss)
        for interval in (d.auc, d.gauc, d.logloss):
            assert interval.low <= interval.high


def test_slices_part_the_test_samples_by_what_they_are_named(matrix: Matrix) -> None:
    split = matrix.split("time", 0)
    parts = dict(parts_of_test(matrix, "time", 0))
    assert len(parts.pop("all")) == len(split.test)
    kinds = {name.split(" ")[0] + name.split(" ")[1] for name in parts}
    assert {"itemwith", "userwith", "usertext", "userown,"} <= kinds
    for rows in parts.values():
        assert MIN_SLICE <= len(rows) < len(split.test)
    trained = np.bincount(split.samples.item[split.train], minlength=len(split.samples.items))
    counts = trained[split.samples.item[split.test]]
    for name, rows in parts.items():
        if name.startswith("item with 0 "):
            assert set(rows) == set(np.flatnonzero(counts == 0))
    assert any(name.startswith("item with 0 ") for name in parts)
    own = parts["user own, item own"]
    assert (split.samples.user[split.test][own] % 2 == 0).all()


def test_an_interval_of_one_seed_is_that_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    label, user = rng.integers(0, 2, 400).astype(np.float32), rng.integers(0, 40, 400)
    base, better = rng.random((1, 400)), rng.random((1, 400)) + 0.2 * label
    drawn = bootstrap_auc_difference(label, base, better, user, draws=200, seed=0)
    found = paired_interval([0.1], drawn[None])
    assert (found.low, found.high) == (
        pytest.approx(np.quantile(drawn, 0.025)),
        pytest.approx(np.quantile(drawn, 0.975)),
    )
    assert found.value == 0.1


def test_an_interval_is_wider_where_seeds_disagree() -> None:
    users = np.random.default_rng(0).normal(0, 0.01, 300)
    agree = paired_interval([0.0, 0.0, 0.0], np.stack([users, users, users]))
    apart = paired_interval([-0.05, 0.0, 0.05], np.stack([users - 0.05, users, users + 0.05]))
    assert apart.high - apart.low > 2 * (agree.high - agree.low)
    nothing = paired_interval([np.nan], np.full((1, 10), np.nan))
    assert (nothing.value, nothing.low, nothing.high) == (None, None, None)


def test_only_finished_cells_count(data: LiftData, tmp_path: Path) -> None:
    config: MatrixConfig = SMALL.model_copy(update={"protocols": ("time",)})

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    matrix = Matrix(data, config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        matrix.run(stop)
    measures, differences, _ = compare(matrix)
    assert {(m.arm, m.seeds) for m in measures} == {("base", 1)}
    assert differences == []


def test_what_frozen_adapters_keep_is_the_ratio_of_mean_lifts(data: LiftData, tmp_path: Path) -> None:
    chosen = {"protocols": ("time",), "arms": ("base", "full", "frozen"), "backbones": ("DCN", "DeepFM", "DCNMix")}
    longer = SMALL.ctr.model_copy(update={"max_epochs": 4, "patience": 4, "learning_rate": 0.01})
    matrix = Matrix(data, SMALL.model_copy(update={**chosen, "ctr": longer}), tmp_path)
    matrix.run(workers=2)
    measures, _, [kept] = compare(matrix)
    assert (kept.protocol, kept.frozen_with, kept.backbones, kept.seeds) == ("time", "DeepFM", ("DCN", "DCNMix"), 2)
    auc_of = {(m.backbone, m.arm): m.auc for m in measures if m.part == "all"}
    joint, frozen = (
        np.mean([auc_of[b, arm] - auc_of[b, "base"] for b in ("DCN", "DCNMix")]) for arm in ("full", "frozen")
    )
    assert (kept.joint.value, kept.frozen.value) == (pytest.approx(joint), pytest.approx(frozen))
    assert kept.joint.is_above_zero
    assert kept.share.value == pytest.approx(frozen / joint)
    assert kept.share.low < kept.share.value < kept.share.high
