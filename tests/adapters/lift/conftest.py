from dataclasses import replace

import numpy as np
import pytest

from adapters.lift.data import LiftData
from adapters.lift.matrix import Matrix
from tests.adapters.lift.worlds import SMALL, lift_data
from tests.adapters.worlds import World


@pytest.fixture(scope="session")
def data(world: World) -> LiftData:
    return lift_data(world)


@pytest.fixture(scope="session")
def matrix(data: LiftData, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """A finished matrix of one protocol and backbone, three arms and two seeds."""
    config = SMALL.model_copy(
        update={"protocols": ("time",), "users": None, "arms": ("base", "titles", "full"), "bootstrap_draws": 50}
    )
    rungs = np.where(data.samples.user % 2 == 0, "user own, item own", "user group, item own")
    made = Matrix(replace(data, rungs=rungs), config, tmp_path_factory.mktemp("matrix"))
    made.run()
    return made
