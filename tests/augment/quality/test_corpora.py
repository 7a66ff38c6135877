"""The gate on real LLM knowledge, where it lies beside the repository."""

from pathlib import Path

import pytest

from augment.quality.config import QualityConfig
from augment.quality.gate import QualityGate
from augment.quality.status import Status
from benchmarks.quality_corpora import FACTORS, draw, judge, read_samples, summarise

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "knowledge").is_dir(), reason="needs shared/data/knowledge beside the repository")
def test_useful_corpora_pass_and_answers_to_nothing_do_not() -> None:
    samples, names = read_samples(SHARED)
    verdicts, _ = judge(QualityGate(QualityConfig(), {"group": FACTORS}, names), samples)
    rows = summarise(samples, verdicts)
    assert sum(row.texts for row in rows.values()) == len(samples) == 5840

    def ok(name: str) -> float:
        return rows[name].statuses.get(Status.OK, 0) / rows[name].texts

    for entity in ("item", "user_positive", "user_negative"):
        assert ok(f"ml-1m-collective/{entity}") > 0.97
        assert 0.7 < ok(f"amazon-books-collective/{entity}") < 0.9
    assert ok("ml-1m-item-colakg/item") > 0.99
    assert rows["ml-1m-item-colakg/item"].statuses[Status.EMPTY] == 1
    assert ok("amazon-books-collective/user_negative (asked about nothing)") < 0.2
    assert draw(samples, verdicts, 10) == draw(samples, verdicts, 10)
