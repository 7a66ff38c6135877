"""The inflated copy of a model says what the model says."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.inflate import Inflation, inflate, largest_difference

POCKET_LLM = Path(__file__).parents[2] / "demo" / "weights"


@pytest.mark.engine
def test_a_wider_and_deeper_copy_has_the_same_logits(tmp_path: Path) -> None:
    sizes = Inflation(hidden=1024, layers=5, intermediate=600, kv_heads=6)
    parameters = inflate(POCKET_LLM, tmp_path / "large", sizes)
    layer = 4 * 1024 * 6 * 64 + 3 * 1024 * 600 + 2 * 1024 + 2 * 64
    rows = json.loads((POCKET_LLM / "config.json").read_text())["vocab_size"]
    assert parameters == 5 * layer + (rows + 1) * 1024
    tokens = torch.randint(3, 1984, (2, 40), generator=torch.Generator().manual_seed(1))
    assert largest_difference(POCKET_LLM, POCKET_LLM, tokens) == 0
    assert largest_difference(POCKET_LLM, tmp_path / "large", tokens) < 5e-5


def test_a_copy_cannot_be_smaller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is smaller than .*\(hidden, layers, intermediate = \(256, 4, 512\)\)"):
        inflate(POCKET_LLM, tmp_path / "small", Inflation(hidden=128))
