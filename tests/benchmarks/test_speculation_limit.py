"""The limit of drafting against drafts that are made one token at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from augment.speculation.drafting import DraftingConfig, Session
from augment.speculation.pool import RetrievalPool
from benchmarks.speculation_limit import least_wrong, limit


def _texts(count: int, seed: int) -> list[list[int]]:
    """Texts of fixed phrases in random order, with a random number after each."""
    rng = np.random.default_rng(seed)
    return [
        [token for _ in range(6) for token in [*range(10 * rng.integers(1, 5), 50, 9), int(rng.integers(100, 130))]]
        for _ in range(count)
    ]


def test_the_limit_is_what_drafts_of_true_contexts_reach() -> None:
    pool = RetrievalPool.build(_texts(60, 0))
    texts = [SimpleNamespace(prompt=np.array([7, 8], np.int32), text=np.array(t, np.int32)) for t in _texts(12, 1)]
    named, steps, places = 0, 0, 0
    for text in texts:
        session = Session(pool, text.prompt.tolist(), None, DraftingConfig(min_probability=0.0, frozen=True), 200)
        for place, token in enumerate(text.text.tolist()):
            right = session.propose(1) == [token]
            session.accept([token])
            named += right
            steps += not right or place == len(text.text) - 1
            places += 1
    found = limit(pool, texts)
    assert 0.3 < found["named_right"] < 0.95
    assert found["named_right"] == round(named / places, 4)
    assert found["unlimited_length"] == round(places / steps, 4)
    assert found["named_right"] < found["named_right_of_two"] < 1
    assert found["fano_unlimited_length"] >= found["unlimited_length"] - 0.01
    assert found["bits_per_token"] > (1 - found["named_right"]) / 2


@pytest.mark.parametrize(("wrong", "choices"), [(0.01, 40), (0.3, 8192), (0.6, 8192)])
def test_fanos_bound_is_reached_when_all_else_is_equally_likely(wrong: float, choices: int) -> None:
    shares = [1 - wrong, *[wrong / (choices - 1)] * (choices - 1)]
    bits = -sum(share * math.log2(share) for share in shares)
    assert least_wrong(bits, choices) == pytest.approx(wrong, abs=1e-6)
