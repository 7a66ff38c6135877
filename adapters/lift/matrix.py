"""The matrix of cells on disk: what is there is kept, what is missing is fitted, an interrupted run goes on.

    FOLDER/cells/<protocol>/<backbone>/<arm>-s<seed>-<digest>.json   measures and cost of one cell
    FOLDER/cells/<protocol>/<backbone>/<arm>-s<seed>-<digest>.npy    its scores on the test samples, float32

The digest names data, arm and settings, so a folder may hold several matrices. The JSON file is renamed into place
last: where it stands, the cell is done.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from adapters.config import Backbone
from adapters.lift.arms import ArmSpec, arm_specs
from adapters.lift.cell import run_cell
from adapters.lift.config import Arm, MatrixConfig, Protocol
from adapters.lift.data import LiftData, chosen_users
from adapters.lift.splits import DEALT, KAR_SEED, Split, split_by
from adapters.measures import auc, calibration_error, gauc, logloss
from warehouse.errors import ConfigError
from warehouse.keys import digest
from warehouse.store import replacing, write_json

# Raised when what a cell computes changes, so that older files are not taken for it.
FORMAT = 2


@dataclass(frozen=True)
class Cell:
    """One place of the matrix."""

    protocol: Protocol
    backbone: Backbone
    arm: Arm
    seed: int


class CellResult(BaseModel, frozen=True, extra="forbid"):
    """What a cell's JSON file says. Measures are those of all its test samples; log loss in nats, null if undefined."""

    protocol: Protocol
    backbone: Backbone
    arm: Arm
    seed: int
    digest: str
    train_samples: int
    valid_samples: int
    test_samples: int
    auc: float | None
    gauc: float | None
    logloss: float | None
    calibration_error: float | None
    valid_auc: float
    valid_logloss: float
    epochs: int
    best_epoch: int
    seconds: float


@dataclass(frozen=True)
class Progress:
    """After each fitted cell: how many of how many are done, the cell, and the seconds that the rest will take."""

    done: int
    total: int
    cell: Cell
    auc: float | None
    seconds: float
    left_s: float


class Matrix:
    """The cells of `config` over `data`, kept under `folder`."""

    def __init__(self, data: LiftData, config: MatrixConfig, folder: Path) -> None:
        self.config, self.folder = config, Path(folder)
        self.data = data.of_users(config.users)
        self._data_digest = self.data.digest
        self._splits: dict[tuple[Protocol, int], Split] = {}
        self._specs = {protocol: self._chosen(protocol) for protocol in config.protocols}

    def cells(self) -> list[Cell]:
        """All places, seed by seed, so that an interrupted run has every arm of the seeds it reached."""
        config = self.config
        return [
            Cell(protocol, backbone, arm, seed)
            for seed in config.seeds
            for protocol in config.protocols
            for backbone in config.backbones
            for arm in self._specs[protocol]
        ]

    def spec(self, cell: Cell) -> ArmSpec:
        return self._specs[cell.protocol][cell.arm]

    def split(self, protocol: Protocol, seed: int) -> Split:
        """The protocol's split, made once, with only the training events of those users that may teach.

        Which items or users are cold depends on the seed: a few hundred items are too few for one draw of them to say
        what knowledge is worth.
        """
        place = protocol, seed if protocol in DEALT else 0
        if place not in self._splits:
            split = split_by(protocol, self.data.samples, KAR_SEED + place[1])
            teaching = chosen_users(len(split.samples.users), self.config.train_users)
            train = split.train[teaching[split.samples.user[split.train]]]
            self._splits[place] = replace(split, train=train)
        return self._splits[place]

    def digest(self, cell: Cell) -> str:
        """Identity of what the cell computes."""
        spec = self.spec(cell)
        unread = {"protocols", "backbones", "arms", "seeds", "users", "bootstrap_draws"}
        if not spec.item and not spec.user:
            unread.add("tower")
        if not spec.frozen:
            unread.add("frozen_with")
        return digest(
            {
                "format": FORMAT,
                "data": self._data_digest,
                "cell": asdict(cell),
                "arm": asdict(spec),
                "settings": self.config.model_dump(mode="json", exclude=unread),
            }
        )

    def find(self, cell: Cell) -> CellResult | None:
        """The stored result, or None where the cell is still to be fitted."""
        path = self._path(cell, ".json")
        try:
            return CellResult.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ConfigError(
                f"{path} is not a cell's result: {error}. Remove the file to have it made anew."
            ) from error

    def scores(self, cell: Cell) -> np.ndarray:
        """Click probabilities of the split's test samples, of a cell that is done. float32 [test].

        Raises ConfigError for a file that is lost or damaged.
        """
        path = self._path(cell, ".npy")
        try:
            return np.asarray(np.load(path))
        except (OSError, EOFError, ValueError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}. Remove {self._path(cell, '.json')} to have the cell fitted anew."
            ) from error

    def run(self, progress: Callable[[Progress], None] | None = None, workers: int = 1) -> None:
        """Fit the cells that are missing, in as many processes of one thread each as there are `workers`.

        A cell is the same whatever `workers` is, up to the order in which a thread pool adds numbers.
        """
        cells = self.cells()
        missing = [cell for cell in cells if self.find(cell) is None]
        started = perf_counter()
        for done, (cell, result) in enumerate(self._fitted(missing, workers), start=1):
            if progress is not None:
                left = (perf_counter() - started) / done * (len(missing) - done)
                progress(Progress(len(cells) - len(missing) + done, len(cells), cell, result.auc, result.seconds, left))

    def _fitted(self, missing: list[Cell], workers: int) -> Iterator[tuple[Cell, CellResult]]:
        if workers == 1 or len(missing) < 2:
            yield from ((cell, self._fit(cell)) for cell in missing)
            return
        # Forked children share the data. What a split or a child makes is the child's own.
        context = get_context("fork")
        with ProcessPoolExecutor(workers, context, _be_a_worker, (self,)) as pool:
            fits = {pool.submit(_fit_in_worker, cell): cell for cell in missing}
            try:
                for fit in as_completed(fits):
                    yield fits[fit], fit.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _fit(self, cell: Cell) -> CellResult:
        split = self.split(cell.protocol, cell.seed)
        made = run_cell(self.data, split, self.spec(cell), cell.backbone, cell.seed, self.config)
        label, user = split.samples.label[split.test], split.samples.user[split.test]
        result = CellResult(
            **asdict(cell),
            digest=self.digest(cell),
            train_samples=len(split.train),
            valid_samples=len(split.valid),
            test_samples=len(split.test),
            auc=finite(auc(label, made.scores)),
            gauc=finite(gauc(label, made.scores, user)),
            logloss=finite(logloss(label, made.scores)),
            calibration_error=finite(calibration_error(label, made.scores)),
            valid_auc=made.valid_auc,
            valid_logloss=made.valid_logloss,
            epochs=made.epochs,
            best_epoch=made.best_epoch,
            seconds=made.seconds,
        )
        path = self._path(cell, ".npy")
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, made.scores)
        write_json(self._path(cell, ".json"), result.model_dump(mode="json"))
        return result

    def _path(self, cell: Cell, suffix: str) -> Path:
        name = f"{cell.arm}-s{cell.seed}-{self.digest(cell)[:12]}{suffix}"
        return self.folder / "cells" / cell.protocol / cell.backbone / name

    def _chosen(self, protocol: Protocol) -> dict[Arm, ArmSpec]:
        specs = arm_specs(self.data, protocol)
        if self.config.arms is None:
            return {arm: spec for arm, spec in specs.items() if not arm.startswith(("wrong_", "stale_"))}
        chosen = {arm: spec for arm, spec in specs.items() if arm in self.config.arms}
        if not chosen:
            raise ConfigError(
                f"None of the arms {', '.join(self.config.arms)} is possible under `{protocol}`; these data allow "
                f"{', '.join(specs)}."
            )
        return chosen


_matrix: Matrix | None = None


def _be_a_worker(matrix: Matrix) -> None:
    global _matrix
    _matrix = matrix
    torch.set_num_threads(1)


def _fit_in_worker(cell: Cell) -> CellResult:
    assert _matrix is not None, "a worker that was not set up"
    return _matrix._fit(cell)


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
