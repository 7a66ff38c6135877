import pytest

from adapters.lift.data import LiftData
from tests.adapters.lift.worlds import lift_data
from tests.adapters.worlds import World


@pytest.fixture(scope="session")
def data(world: World) -> LiftData:
    return lift_data(world)
