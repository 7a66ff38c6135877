"""One thread for torch (results and times depend on it), and the small world that most tests share."""

import pytest
import torch

from tests.adapters.worlds import World, make_world


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()
