"""A warehouse as data for a lift: every sample reads what was known of its own user and item by then."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adapters.lift.arms import arm_specs
from adapters.lift.data import LiftData
from adapters.lift.stored import describe, stored_data
from flows import stages
from flows.run import Run
from tests.flows.shop import event, open_run, open_shop, run_once, write_events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shop")
    shop = open_shop(folder)
    write_events(folder, "", [event(u, (u + n) % 5, n, 5.0 if n % 2 else 1.0) for u in range(4) for n in range(6)])
    return run_once(shop)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {}


@pytest.fixture(scope="module")
def data(run: Run, texts: dict[str, list[str]]) -> LiftData:
    def encode(name: str, given: Sequence[str]) -> np.ndarray:
        texts[name] = list(given)
        return np.eye(len(given), dtype=np.float32)

    return stored_data("shop", run.stored, run.labelled_events, encode, 5)


def test_summaries_and_facts_are_joined_as_the_samples_are(data: LiftData) -> None:
    samples = data.samples
    assert set(data.sources) == {"facts", "titles", "summaries", "histories"}
    for name, row in (("summaries", samples.user_row), ("facts", samples.item_row)):
        np.testing.assert_array_equal(data.sources[name].rows(samples.ts) >= 0, row >= 0)
    assert (samples.user_row < 0).any()
    assert {"summaries", "facts"} <= {*arm_specs(data, "time")["full"].user, *arm_specs(data, "time")["full"].item}


def test_controls_hold_from_when_the_llms_texts_do(data: LiftData, run: Run) -> None:
    summaries, histories = data.sources["summaries"], data.sources["histories"]
    np.testing.assert_array_equal(histories.entity, summaries.entity)
    np.testing.assert_array_equal(histories.valid_from, summaries.valid_from)
    np.testing.assert_array_equal(histories.rows(data.samples.ts), summaries.rows(data.samples.ts))


def test_controls_say_what_the_tables_say_and_no_more(data: LiftData, run: Run, texts: dict[str, list[str]]) -> None:
    assert texts["titles"] == [f"Quiet Lamp {n}. genres: drama." for n in range(5)]
    partitions = pa.concat_tables([pq.read_table(path) for path in run.ledger.files("partitions")])
    first = next(row for row in partitions.to_pylist() if row["user_id"] == "u1" and row["partition_no"] == 0)
    assert first["items"] == ["i1", "i2"]
    assert "Quiet Lamp 1, 1; Quiet Lamp 2, 5" in texts["histories"]
    # Partition 1 of a user reads the mean of both partitions' texts, as its summary does.
    second = data.sources["histories"].vectors[1]
    assert sorted(second[second > 0].tolist()) == [0.5, 0.5]


def test_an_item_is_described_by_its_title_and_what_is_known_of_it() -> None:
    said = describe("Quiet Lamp", {"genres": ["a", "b"], "release_year": 1990, "maker": None})
    assert said == "Quiet Lamp. genres: a, b. release year: 1990."


def test_a_warehouse_without_texts_allows_base_arms_and_titles(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    run = open_run(shop)
    stages.ingest(run)
    data = stored_data(
        "shop", run.stored, run.labelled_events, lambda name, texts: np.eye(len(texts), dtype=np.float32), 5
    )
    assert set(arm_specs(data, "time")) == {"base_unmasked", "base", "base_history", "titles"}
