"""What the whole test suite shares: a quiet machine for OpenMP, and one vLLM engine on the pocket LLM."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from augment.engine.base import Request
from augment.engine.vllm import EngineConfig, VllmEngine
from tests.object_stores import s3_endpoint, s3_url, short_leases, store_url

__all__ = ["s3_endpoint", "s3_url", "short_leases", "store_url"]

# OpenMP reads this when torch is first imported. Threads that spin at barriers make a busy machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker for each processor: more threads would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

POCKET_LLM = Path(__file__).parents[1] / "demo" / "weights"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests begin, then larger files: last, they would keep one core busy and the other idle."""
    first = {item.path for item in items if item.get_closest_marker("flow") or item.get_closest_marker("faults")}
    size = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (item.path not in first, -size[item.path]))


@pytest.fixture(scope="session")
def pocket_llm() -> Path:
    """Folder of the committed pocket LLM."""
    return POCKET_LLM


@pytest.fixture(scope="session")
def engine() -> Iterator[VllmEngine]:
    """Real vLLM on the pocket LLM, greedy, at most 48 new tokens and 4 texts at once; one load per session.

    It runs inside the test process, which starts in a third of the time; the default, a process of its own,
    has its own test in a subprocess.
    """
    config = EngineConfig(
        model=str(POCKET_LLM), max_new_tokens=48, max_model_len=512, max_concurrent=4, kv_cache_gib=0.25
    )
    engine = VllmEngine(config)
    with pytest.MonkeyPatch.context() as patch:
        # Only while it loads: an engine that another test starts should have vLLM's default.
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        list(engine.generate([Request("warm-up", "Hello")]))
    yield engine
    engine.close()
