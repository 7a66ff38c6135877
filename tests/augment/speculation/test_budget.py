"""The budget of a step against brute force, and the step times it rests on."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from augment.speculation.budget import affordable, expected_rate, lengths
from augment.speculation.calibration import Calibration
from augment.speculation.steptime import StepClock, StepTable, knots, measure


@st.composite
def drafts(draw: st.DrawFn) -> NDArray[np.float32]:
    """Path probabilities of one to four drafts of up to four tokens."""
    n, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shares = draw(st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), min_size=n * width, max_size=n * width))
    return np.cumprod(np.array(shares, np.float32).reshape(n, width), axis=1)


@st.composite
def step_times(draw: st.DrawFn, entries: int = 17) -> NDArray[np.float64]:
    """Times that never fall: flat, straight or with jumps."""
    rises = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 2.0]), min_size=entries - 1, max_size=entries - 1))
    return draw(st.sampled_from([0.5, 5.0])) + np.concatenate(([0.0], np.cumsum(rises)))


def rate(probability: NDArray[np.float32], kept: tuple[int, ...], times: NDArray[np.float64], requests: int) -> float:
    emitted = requests + sum(float(p[:k].sum()) for p, k in zip(probability, kept, strict=True))
    return emitted / float(times[sum(kept)])


@settings(deadline=None)
@given(drafts(), step_times())
def test_no_choice_of_prefixes_promises_more_tokens_a_second(
    p: NDArray[np.float32], times: NDArray[np.float64]
) -> None:
    n, width = p.shape
    kept = lengths(p, times, n)
    best = max(rate(p, choice, times, n) for choice in product(range(width + 1), repeat=n))
    assert rate(p, tuple(kept.tolist()), times, n) == pytest.approx(best, rel=1e-6)
    assert expected_rate(p, kept, times, n) == pytest.approx(best, rel=1e-6)
    assert (np.where(np.arange(width) < kept[:, None], p, 1.0) > 0).all(), "a token past the end of its draft"


def test_where_times_are_convex_the_last_token_pays_and_the_next_would_not() -> None:
    """The rule itself: q > E (T(n+1) - T(n)) / T(n)."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(1, 20))
        p = np.cumprod(rng.random((n, 8), dtype=np.float32), axis=1)
        times = 10 + np.cumsum(np.sort(rng.exponential(0.5, 8 * n + 1)))
        kept = lengths(p, times, n)
        taken = np.arange(8) < kept[:, None]
        total, emitted = int(kept.sum()), n + float(p[taken].sum())
        left = float(p[~taken].max(initial=0.0))
        if total < 8 * n:
            assert left <= emitted * (times[total + 1] - times[total]) / times[total] + 1e-6
        if total:
            last = float(p[taken].min())
            assert last > (emitted - last) * (times[total] - times[total - 1]) / times[total - 1] - 1e-6


def test_a_full_machine_drafts_nothing_and_an_idle_one_all() -> None:
    p = np.full((8, 4), 0.7, np.float32)
    assert lengths(p, np.arange(8.0, 41.0), 8).tolist() == [0] * 8
    assert lengths(p, np.full(33, 8.0), 8).tolist() == [4] * 8
    assert affordable(np.full(33, 8.0), 8) == 32
    # Tokens that cost less than one that is read anyway can pay, if they are sure enough.
    assert affordable(8 + 0.5 * np.arange(33.0), 8) == 32
    assert affordable(8 + 1.5 * np.arange(33.0), 8) == 0


def test_equal_probabilities_are_served_by_position_then_row() -> None:
    p = np.full((3, 3), 0.5, np.float32)
    times = np.concatenate((np.full(5, 3.0), np.full(5, 1e9)))
    assert lengths(p, times, 3).tolist() == [2, 1, 1]


def test_a_table_is_straight_between_and_past_its_entries_and_never_falls() -> None:
    table = StepTable((1, 2, 4, 8), (1.0, 1.5, 1.4, 3.1))
    past = (3.1 - 1.4) / 4  # over the second half; 0.6 of an average token would be less
    expected = [1.0, 1.0, 1.4, 1.4, 1.4, 1.825, 2.25, 2.675, 3.1, 3.1 + past, 3.1 + 2 * past]
    assert table.upto(10).tolist() == pytest.approx(expected)
    # A disturbed last entry of a long table bends what follows less than the last two entries would.
    assert StepTable((1, 4, 6, 8), (1.0, 4.0, 6.0, 9.0)).upto(12)[12] == pytest.approx(9 + 4 * 5 / 4)
    # A table that ends where time has not begun to grow.
    assert StepTable((1, 2, 4), (1.0, 1.0, 1.0)).upto(8)[8] == pytest.approx(1 + 4 * 0.6 / 4)


def test_measuring_takes_the_least_of_its_passes_and_ends_where_time_is_straight() -> None:
    rng = np.random.default_rng(4)
    seen: list[int] = []

    def run(tokens: int) -> float:
        seen.append(tokens)
        disturbed = 5 * rng.random() if rng.random() < 0.3 else 0.0
        return max(10.0, 1.0 * tokens) / 1e3 * (1 + disturbed)

    table = measure(run, most=4096, passes=6)
    assert table.seconds == pytest.approx([max(10.0, n) / 1e3 for n in table.tokens])
    assert table.tokens == tuple(knots(32))
    assert len(seen) == 1 + 6 + 6 * len(table.tokens)
    # A slow machine: three entries, and no second pass.
    assert measure(lambda n: 3.0, most=4096, limit_s=8.0).tokens == (1, 2, 4)
    assert measure(lambda n: float(n), most=1).seconds == (1.0, 2.0)


def test_the_clock_learns_overhead_and_scale_from_the_steps_of_a_run() -> None:
    table = StepTable(tuple(knots(256)), tuple(0.02 + 0.001 * n for n in knots(256)))
    clock = StepClock(table, most=512)
    assert clock.times(1, 3).tolist() == pytest.approx([0.021, 0.022, 0.023])
    rng = np.random.default_rng(1)
    for _ in range(3000):
        n = int(rng.integers(1, 200))
        disturbed = 1.0 if rng.random() < 0.02 else 0.0
        clock.observe(n, 0.005 + 1.5 * (0.02 + 0.001 * n) + rng.normal(0, 1e-3) + disturbed)
    assert clock.scale == pytest.approx(1.5, rel=0.05)
    assert clock.times(10, 10)[0] == pytest.approx(0.05, rel=0.05)
    assert clock.times(511, 514).tolist() == pytest.approx([0.035 + 0.0015 * n for n in range(511, 515)], rel=0.1)


def test_a_table_of_the_wrong_shape_is_mended_where_steps_are_seen() -> None:
    """Measured while something else ran: 16 tokens seem to cost four times what they do."""
    clock = StepClock(StepTable((1, 8, 16), (0.010, 0.010, 0.040)), most=64)
    assert not clock.knows(16)
    for n in [8, 16, 8, 17] * 30:
        clock.observe(n, 0.010)
    assert clock.knows(16)
    assert clock.times(8, 16).tolist() == pytest.approx([0.010] * 9, rel=0.1)
    assert (np.diff(clock.times(1, 200)) >= 0).all()
    for _ in range(2000):
        clock.observe(8, 0.010)
    assert not clock.knows(16)


def test_a_machine_that_has_become_slow_is_believed_after_a_few_steps() -> None:
    clock = StepClock(StepTable((1, 2), (0.01, 0.01)), most=64)
    for _ in range(50):
        clock.observe(8, 0.01)
    for _ in range(5):
        clock.observe(8, 0.1)
    assert clock.times(8, 8)[0] == pytest.approx(0.01, rel=0.05)
    for _ in range(2000):
        clock.observe(8, 0.1)
    assert clock.times(8, 8)[0] == pytest.approx(0.1, rel=0.05)


def test_steps_of_one_size_change_the_overhead_and_not_the_scale() -> None:
    clock = StepClock(StepTable((1, 2), (0.02, 0.021)), most=64)
    for _ in range(500):
        clock.observe(16, 0.08)
    assert clock.scale == pytest.approx(1.0, rel=0.05)
    assert clock.times(16, 16)[0] == pytest.approx(0.08, rel=0.01)


def test_calibration_starts_as_claimed_and_learns_what_is_accepted() -> None:
    calibration = Calibration()
    p = np.array([[0.9, 0.5, 0.0], [0.3, 0.1, 0.1]], np.float32)
    assert calibration.apply(p) == pytest.approx(p, abs=1e-6)
    rng = np.random.default_rng(2)
    for _ in range(500):
        claimed = np.cumprod(rng.random((8, 4), dtype=np.float32), axis=1)
        # Twice as likely as claimed; a token counts only with all before it.
        accepted = (rng.random(8)[:, None] < np.minimum(2 * claimed, 1)).sum(axis=1)
        calibration.observe(claimed, np.full(8, 4), accepted)
    learned = calibration.apply(np.array([0.1, 0.2, 0.4, 0.8, 0.0], np.float32))
    assert learned.tolist() == pytest.approx([0.2, 0.4, 0.8, 1.0, 0.0], abs=0.06)
    assert (np.diff(calibration.apply(np.linspace(0, 1, 101, dtype=np.float32))) >= 0).all()
