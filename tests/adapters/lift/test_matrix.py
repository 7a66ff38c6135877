from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.lift.config import TowerConfig
from adapters.lift.data import LiftData
from adapters.lift.matrix import Matrix, Progress
from adapters.measures import auc, calibration_error, gauc, logloss
from tests.adapters.lift.worlds import SMALL
from warehouse.errors import ConfigError


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cells_made(matrix: Matrix) -> list[tuple[str, str, int]]:
    made: list[tuple[str, str, int]] = []
    matrix.run(lambda p: made.append((p.cell.protocol, p.cell.arm, p.cell.seed)))
    return made


def test_an_interrupted_matrix_goes_on_where_it_was(data: LiftData, tmp_path: Path) -> None:
    def stop_after_three(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    first = Matrix(data, SMALL, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        first.run(stop_after_three)
    before = files(tmp_path / "stopped")
    assert len(before) == 6
    # What a crash in the middle of a cell leaves: scores without the JSON that says they are done.
    half = next(path for path in (tmp_path / "stopped").rglob("full-s0-*.json") if "time" in str(path))
    half.unlink()

    again = Matrix(data, SMALL, tmp_path / "stopped")
    assert cells_made(again) == [
        ("time", "full", 0),
        ("cold_items", "full", 0),
        ("time", "base", 1),
        ("time", "full", 1),
        ("cold_items", "base", 1),
        ("cold_items", "full", 1),
    ]
    after = files(tmp_path / "stopped")
    assert all(after[name] == content for name, content in before.items() if "full-s0" not in name)
    assert cells_made(again) == []

    whole = Matrix(data, SMALL, tmp_path / "whole")
    assert len(cells_made(whole)) == 8
    for cell in whole.cells():
        np.testing.assert_array_equal(whole.scores(cell), again.scores(cell))


def test_a_cell_says_how_its_scores_measure(data: LiftData, tmp_path: Path) -> None:
    matrix = Matrix(data, SMALL.model_copy(update={"protocols": ("time",), "arms": ("base",), "seeds": (0,)}), tmp_path)
    told: list[Progress] = []
    matrix.run(told.append)
    [cell] = matrix.cells()
    result, split = matrix.find(cell), matrix.split("time", 0)
    assert result is not None
    label, user, scores = split.samples.label[split.test], split.samples.user[split.test], matrix.scores(cell)
    assert result.auc == pytest.approx(auc(label, scores))
    assert result.gauc == pytest.approx(gauc(label, scores, user))
    assert result.logloss == pytest.approx(logloss(label, scores))
    assert result.calibration_error == pytest.approx(calibration_error(label, scores))
    assert result.test_samples == len(split.test)
    assert (told[0].done, told[0].total, told[0].left_s) == (1, 1, 0.0)
    assert told[0].auc == result.auc


def test_other_settings_or_data_are_other_cells(data: LiftData, tmp_path: Path) -> None:
    def digests(data: LiftData, **changes: object) -> list[str]:
        matrix = Matrix(data, SMALL.model_copy(update=changes), tmp_path)
        return [matrix.digest(cell) for cell in matrix.cells() if cell.seed == 0 and cell.protocol == "time"]

    base, full = digests(data)
    assert digests(data, seeds=(0,), protocols=("time",), bootstrap_draws=11) == [base, full]
    assert set(digests(data, users=50)) & {base, full} == set()
    assert set(digests(data, history_length=2)) & {base, full} == set()
    # The towers are nothing to an arm without knowledge.
    other = digests(data, tower=TowerConfig(components=9))
    assert other[0] == base
    assert other[1] != full


def test_only_so_many_users_teach_and_all_are_judged(data: LiftData, tmp_path: Path) -> None:
    few = SMALL.model_copy(update={"train_users": 20})
    for protocol in ("time", "cold_items"):
        all_teach, some = (Matrix(data, config, tmp_path).split(protocol, 0) for config in (SMALL, few))
        np.testing.assert_array_equal(some.valid, all_teach.valid)
        np.testing.assert_array_equal(some.test, all_teach.test)
        assert set(some.train) < set(all_teach.train)
        teachers = np.unique(some.samples.user[some.train])
        assert len(teachers) <= 20
        assert set(some.train) == set(all_teach.train[np.isin(some.samples.user[all_teach.train], teachers)])


def test_arms_that_no_data_allow_are_refused(data: LiftData, tmp_path: Path) -> None:
    bare = LiftData("bare", data.samples, {})
    with pytest.raises(ConfigError, match="None of the arms full is possible under `time`; these data allow base"):
        Matrix(bare, SMALL.model_copy(update={"arms": ("full",)}), tmp_path)


def test_sensitivity_arms_are_fitted_only_when_named(data: LiftData, tmp_path: Path) -> None:
    every = {cell.arm for cell in Matrix(data, SMALL.model_copy(update={"arms": None}), tmp_path).cells()}
    assert {"full", "shuffled", "titles"} <= every
    assert not [arm for arm in every if arm.startswith(("wrong_", "stale_"))]


def test_a_broken_result_is_named(data: LiftData, tmp_path: Path) -> None:
    matrix = Matrix(data, SMALL, tmp_path)
    path = matrix._path(matrix.cells()[0], ".json")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="Remove the file to have it made anew"):
        matrix.find(matrix.cells()[0])


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00v\x00{'de"])
def test_scores_that_were_lost_or_cut_short_are_named(data: LiftData, tmp_path: Path, content: bytes | None) -> None:
    matrix = Matrix(data, SMALL, tmp_path)
    path = matrix._path(matrix.cells()[0], ".npy")
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path} cannot be read: .*Remove .*\.json to have the cell fitted anew"):
        matrix.scores(matrix.cells()[0])


def test_workers_fit_the_same_cells(data: LiftData, tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"protocols": ("cold_items",)})
    alone, shared = Matrix(data, config, tmp_path / "alone"), Matrix(data, config, tmp_path / "shared")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone.run()
    finally:
        torch.set_num_threads(threads)
    told: list[Progress] = []
    shared.run(told.append, workers=2)
    assert [p.done for p in told] == [1, 2, 3, 4]
    for cell in alone.cells():
        np.testing.assert_array_equal(alone.scores(cell), shared.scores(cell))
    made = files(tmp_path / "shared")
    shared.run(told.append, workers=2)
    assert files(tmp_path / "shared") == made


def test_each_seed_has_cold_items_of_its_own_and_one_split_by_time(data: LiftData, tmp_path: Path) -> None:
    matrix = Matrix(data, SMALL, tmp_path)
    cold = [
        set(matrix.split("cold_items", seed).samples.item[matrix.split("cold_items", seed).test]) for seed in (0, 1)
    ]
    assert cold[0] != cold[1]
    np.testing.assert_array_equal(matrix.split("time", 0).test, matrix.split("time", 1).test)


def test_a_frozen_adapter_is_that_of_the_other_model(data: LiftData, tmp_path: Path) -> None:
    """Frozen with the cell's own model: the adapter is that of the joint cell, the model beside it another."""
    chosen = {"protocols": ("time",), "arms": ("full", "frozen"), "seeds": (0,), "backbones": ("DCN", "DeepFM")}
    matrix = Matrix(data, SMALL.model_copy(update=chosen), tmp_path)
    matrix.run()
    scores = {(cell.backbone, cell.arm): matrix.scores(cell) for cell in matrix.cells()}
    assert not np.array_equal(scores["DCN", "frozen"], scores["DCN", "full"])
    other = Matrix(data, SMALL.model_copy(update={**chosen, "frozen_with": "DCN"}), tmp_path)
    digests = {(c.backbone, c.arm): matrix.digest(c) == other.digest(c) for c in matrix.cells()}
    assert digests == {(b, arm): arm == "full" for b in ("DCN", "DeepFM") for arm in ("full", "frozen")}
