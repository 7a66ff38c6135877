"""A period never spends more than its budget, whatever is killed when."""

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.budget import BudgetConfig, Meter, read_spending
from warehouse.errors import CorruptWarehouse

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MOST = 10


@settings(max_examples=60, deadline=None)
@given(
    calls=st.none() | st.integers(0, 150),
    tokens=st.none() | st.integers(0, 1200),
    runs=st.lists(
        st.tuples(st.lists(st.sampled_from(["take", "settle", "refuse"]), max_size=250), st.booleans()), max_size=4
    ),
    written=st.integers(0, MOST),
)
def test_no_sequence_of_runs_and_crashes_spends_more_than_the_budget(
    calls: int | None, tokens: int | None, runs: list[tuple[list[str], bool]], written: int
) -> None:
    config = BudgetConfig(max_calls=calls, max_output_tokens=tokens)
    made, spent = 0, 0
    with TemporaryDirectory() as folder:
        for steps, killed in runs:
            meter = Meter(Path(folder), config, NOW, MOST)
            under_way = 0
            for step in steps:
                if step == "take" and meter.take():
                    under_way += 1
                elif step == "settle" and under_way:
                    meter.settle(written)
                    under_way, made, spent = under_way - 1, made + 1, spent + written
                elif step == "refuse" and under_way:
                    meter.give_back()
                    under_way -= 1
            # What was under way may have been paid for in full.
            made, spent = made + under_way, spent + MOST * under_way
            if not killed:
                meter.close()
            assert calls is None or made <= calls
            assert tokens is None or spent <= tokens


def test_without_a_crash_all_of_the_budget_can_be_spent_over_several_runs(tmp_path: Path) -> None:
    config = BudgetConfig(max_calls=130)
    made = 0
    for _ in range(3):
        meter = Meter(tmp_path, config, NOW, MOST)
        for _ in range(50):
            if meter.take():
                meter.settle(3)
                made += 1
        meter.close()
    assert made == 130
    assert read_spending(tmp_path, "2026-11-20").calls == 130


def test_tokens_that_answers_did_not_use_pay_for_more_calls(tmp_path: Path) -> None:
    meter = Meter(tmp_path, BudgetConfig(max_output_tokens=25), NOW, MOST)
    assert [meter.take(), meter.take(), meter.take()] == [True, True, False]
    meter.settle(2)
    assert meter.take()


def test_what_a_killed_run_had_reserved_counts_as_spent(tmp_path: Path) -> None:
    config = BudgetConfig(max_calls=100)
    killed = Meter(tmp_path, config, NOW, MOST)
    assert killed.take()
    assert Meter(tmp_path, config, NOW, MOST).calls_left == 100 - 64


def test_a_new_period_begins_with_nothing_spent(tmp_path: Path) -> None:
    config = BudgetConfig(max_calls=1)
    first = Meter(tmp_path, config, NOW, MOST)
    assert first.take()
    first.settle(1)
    first.close()
    assert not Meter(tmp_path, config, NOW, MOST).take()
    assert Meter(tmp_path, config, NOW.replace(day=21), MOST).take()


@pytest.mark.parametrize(("period", "name"), [("day", "2026-11-20"), ("week", "2026-W47"), ("month", "2026-11")])
def test_periods_are_of_the_calendar(period: str, name: str) -> None:
    assert BudgetConfig.model_validate({"period": period}).period_of(NOW) == name


def test_without_a_limit_nothing_is_written(tmp_path: Path) -> None:
    meter = Meter(tmp_path, BudgetConfig(), NOW, MOST)
    assert all(meter.take() for _ in range(100))
    meter.close()
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "spending").mkdir()
    (tmp_path / "spending" / "2026-11-20.json").write_text('{"schema_version": 1, "calls": -3}')
    with pytest.raises(CorruptWarehouse, match="'calls': -3"):
        Meter(tmp_path, BudgetConfig(max_calls=1), NOW, MOST)
