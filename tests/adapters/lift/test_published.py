from dataclasses import replace

import numpy as np
import pytest

from adapters.config import AdapterConfig
from adapters.lift.published import Augment, LiftConfig, LiftReport, measure_lift
from adapters.train import train_adapter
from adapters.trained import TrainedAdapter
from tests.adapters.worlds import World
from warehouse.errors import InputError

ADAPTER = AdapterConfig(
    out_dim=8, expert_hidden=16, components=24, embedding_dim=4, hidden=(16,), batch_size=256, max_epochs=10
)
LIFT = LiftConfig(
    embedding_dim=4, hidden=(16,), batch_size=256, max_epochs=10, seeds=(0, 1), bootstrap_draws=100, learning_rate=4e-3
)


@pytest.fixture(scope="module")
def adapter(world: World) -> TrainedAdapter:
    return train_adapter(world.samples, world.user_vectors, world.item_vectors, ADAPTER, encoder_id="encoder")


def published(world: World, adapter: TrainedAdapter) -> Augment:
    return Augment.of(adapter, world.samples, world.user_vectors, world.item_vectors)


@pytest.fixture(scope="module")
def report(world: World, adapter: TrainedAdapter) -> LiftReport:
    return measure_lift(
        world.samples, published(world, adapter), world.user_vectors, world.item_vectors, LIFT, adapter.meta
    )


def test_knowledge_lifts_new_items_and_shuffled_knowledge_does_not(report: LiftReport) -> None:
    new = {arm: parts["new_items"].auc for arm, parts in report.measures.items()}
    assert new["knowledge"] > new["base"] + 0.1
    assert new["shuffled"] < new["base"] + 0.05
    by = {(d.arm, d.part): d for d in report.differences}
    assert by["knowledge", "new_items"].auc_low > 0.05
    assert by["knowledge", "all"].auc_low > 0.05
    assert by["shuffled", "new_items"].auc_low < 0.05


def test_report_counts_its_parts_and_averages_over_seeds(world: World, report: LiftReport) -> None:
    samples = world.samples
    assert report.samples["train"] + report.samples["validation"] + report.samples["holdout"] == len(samples)
    first = np.sort(samples.ts)[int(0.8 * len(samples))]
    trained_on = set(samples.item[samples.ts < first])
    held_out = samples.item[samples.ts >= np.sort(samples.ts)[int(0.9 * len(samples))]]
    assert report.samples["holdout_new_items"] == sum(i not in trained_on for i in held_out)
    for parts in report.measures.values():
        for measure in parts.values():
            assert measure.auc == pytest.approx(np.mean(measure.auc_by_seed))
            assert len(measure.logloss_by_seed) == 2
    for difference in report.differences:
        one, base = (report.measures[arm][difference.part] for arm in (difference.arm, "base"))
        assert difference.auc == pytest.approx(one.auc - base.auc)
        assert difference.logloss == pytest.approx(one.logloss - base.logloss)
        assert difference.auc_low <= difference.auc <= difference.auc_high
    assert LiftReport.model_validate_json(report.model_dump_json()) == report


def test_equal_seeds_give_equal_reports(world: World, adapter: TrainedAdapter) -> None:
    config = LIFT.model_copy(update={"arms": ("base", "knowledge"), "seeds": (3,), "max_epochs": 1})
    told: list[tuple[str, int]] = []

    def measure() -> LiftReport:
        return measure_lift(
            world.samples,
            published(world, adapter),
            world.user_vectors,
            world.item_vectors,
            config,
            adapter.meta,
            progress=lambda arm, seed, seconds: told.append((arm, seed)),
        )

    first, second = measure(), measure()
    assert first.measures == second.measures
    assert first.differences == second.differences
    assert told == [("base", 3), ("knowledge", 3)] * 2


def test_an_adapter_that_saw_the_holdout_is_refused(world: World, adapter: TrainedAdapter) -> None:
    config = LIFT.model_copy(update={"holdout_fraction": 0.3})
    with pytest.raises(InputError, match="reach into this holdout"):
        measure_lift(
            world.samples, published(world, adapter), world.user_vectors, world.item_vectors, config, adapter.meta
        )


def test_augment_of_other_rows_is_refused(world: World, adapter: TrainedAdapter) -> None:
    augment = published(world, adapter)
    short = replace(augment, has_user=augment.has_user[:-1])
    with pytest.raises(InputError, match=r"8000 samples came with augment columns of \[7999, 8000\] rows"):
        measure_lift(world.samples, short, world.user_vectors, world.item_vectors, LIFT, adapter.meta)


def test_augment_is_zero_where_nothing_was_known_yet(world: World, adapter: TrainedAdapter) -> None:
    augment = published(world, adapter)
    early = world.samples.user_row < 0
    assert early.any()
    assert not augment.has_user[early].any()
    assert not augment.user[early].any()
    assert augment.has_item.all()
