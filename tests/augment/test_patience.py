"""Pace, backoff and Retry-After, by the clock that they are given."""

from datetime import UTC, datetime
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.engine.patience import Pace, longest_backoff_s, retry_after_s

NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)

calls = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 400)), min_size=1, max_size=60)


def sent(pace: Pace, made: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """When calls that are made one after another, each some seconds after the last was sent, are sent."""
    now, times = 0.0, []
    for gap, tokens in made:
        now += gap
        now += pace.reserve(now, tokens)
        times.append((now, tokens))
    return times


@given(made=calls, requests=st.none() | st.integers(1, 300), tokens=st.none() | st.integers(50, 20_000))
def test_no_minute_holds_more_than_the_limits(
    made: list[tuple[float, int]], requests: int | None, tokens: int | None
) -> None:
    times = sent(Pace(requests, tokens), made)
    for start, (begin, _) in enumerate(times):
        within = [cost for at, cost in times[start:] if at < begin + 60 - 1e-6]
        assert requests is None or len(within) <= requests
        # The last call of a minute may reach into the next one.
        assert tokens is None or sum(within[:-1]) <= tokens + 1e-6


@given(made=calls)
def test_without_limits_nobody_waits(made: list[tuple[float, int]]) -> None:
    assert [at for at, _ in sent(Pace(), made)] == list(accumulate(gap for gap, _ in made))


def test_calls_are_spaced_evenly_and_tokens_that_were_not_used_are_given_back() -> None:
    assert [at for at, _ in sent(Pace(requests_per_minute=30), [(0.0, 5)] * 4)] == [0, 2, 4, 6]
    pace = Pace(tokens_per_minute=600)
    assert pace.reserve(0.0, 100) == 0
    pace.give_back(60)
    assert pace.reserve(0.0, 100) == pytest.approx(4.0)


@given(failures=st.integers(1, 5000), first=st.floats(0.001, 10), limit=st.floats(0.001, 600))
def test_backoff_doubles_up_to_its_limit(failures: int, first: float, limit: float) -> None:
    longest = longest_backoff_s(failures, first, limit)
    assert 0 < longest <= limit
    assert longest == limit or longest == pytest.approx(first * 2.0 ** (failures - 1))
    assert longest_backoff_s(failures + 1, first, limit) == min(limit, 2 * longest)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("Fri, 20 Nov 2026 12:01:30 GMT", 90.0),
        ("Fri, 20 Nov 2026 12:01:30 -0000", 90.0),
        ("Fri, 20 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW) == seconds
