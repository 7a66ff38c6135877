"""Spans of time in words: right units, right grammar, nothing that only a machine would write."""

import re
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.timespan import coverage, dates, duration

DAYS = {"day": 1.0, "week": 7.0, "month": 30.4375, "year": 365.25}
TIMES = st.datetimes(datetime(1995, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))


def in_days(words: str) -> tuple[int, float]:
    """Count and length in days of a duration in words."""
    match = re.fullmatch(r"(?:about )?(\d+) (day|week|month|year)s?", words)
    assert match, words
    return int(match[1]), int(match[1]) * DAYS[match[2]]


@given(st.integers(1, 20_000))
def test_a_duration_never_goes_back_and_is_off_by_less_than_a_fifth(days: int) -> None:
    count, length = in_days(duration(days))
    assert length <= in_days(duration(days + 1))[1]
    assert abs(length - days) / days < 0.25
    assert (count == 1) == (not duration(days).endswith("s"))
    assert duration(days).startswith("about ") == (days >= 14)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (1, "1 day"),
        (2, "2 days"),
        (13, "13 days"),
        (14, "about 2 weeks"),
        (59, "about 8 weeks"),
        (60, "about 2 months"),
        (729, "about 24 months"),
        (730, "about 2 years"),
        (3653, "about 10 years"),
    ],
)
def test_units_change_where_there_are_two_of_the_next(days: int, words: str) -> None:
    assert duration(days) == words


def test_no_time_at_all_is_no_duration() -> None:
    with pytest.raises(ValueError, match="got 0"):
        duration(0)


@pytest.mark.parametrize(
    ("first", "last", "words"),
    [
        (date(2001, 3, 4), date(2001, 3, 4), "4 March 2001"),
        (date(2001, 3, 4), date(2001, 3, 26), "4 to 26 March 2001"),
        (date(2001, 3, 4), date(2001, 4, 2), "4 March to 2 April 2001"),
        (date(2000, 12, 28), date(2001, 1, 4), "28 December 2000 to 4 January 2001"),
        (date(2000, 3, 28), date(2001, 3, 4), "28 March 2000 to 4 March 2001"),
    ],
)
def test_dates_name_each_month_and_year_once(first: date, last: date, words: str) -> None:
    assert dates(first, last) == words


def at(day: int, hour: int = 12, month: int = 3) -> datetime:
    return datetime(2001, month, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("opened", "sealed", "before", "sentence"),
    [
        (at(4), at(26), None, "It covers about 3 weeks, 4 to 26 March 2001."),
        (at(4, 1), at(4, 23), None, "It is from a single day, 4 March 2001."),
        (at(4, 23), at(5, 1), None, "It covers 2 days, 4 to 5 March 2001."),
        (
            at(4),
            at(26),
            datetime(2000, 10, 1, tzinfo=UTC),
            "It covers about 3 weeks, 4 to 26 March 2001, "
            "and begins about 5 months after the user's earlier history ended.",
        ),
        (
            at(4),
            at(4),
            at(3, 23),
            "It is from a single day, 4 March 2001, and begins 1 day after the user's earlier history ended.",
        ),
        (
            at(4, 12),
            at(5),
            at(4, 11),
            "It covers 2 days, 4 to 5 March 2001, and begins on the day on which the user's earlier history ended.",
        ),
        (at(4), at(9), at(5), "It covers 6 days, 4 to 9 March 2001, and overlaps with the user's earlier history."),
    ],
)
def test_coverage_reads_well(opened: datetime, sealed: datetime, before: datetime | None, sentence: str) -> None:
    assert coverage("It", opened, sealed, before) == sentence


@given(st.tuples(TIMES, TIMES, TIMES).map(sorted), st.booleans())
def test_coverage_has_no_machine_time_and_one_sentence(times: list[datetime], first: bool) -> None:
    before, opened, sealed = times
    sentence = coverage("This history", opened, sealed, None if first else before)
    assert not re.search(r"\d{5}|\d[:T-]\d|second|minute|hour|UTC|\b0 |\b1 (?:days|weeks|months|years)\b", sentence)
    assert sentence.count(".") == 1
    assert sentence.endswith(".")
    assert ("earlier history" in sentence) == (not first)
    assert str(sealed.year) in sentence


@given(TIMES, st.timedeltas(timedelta(0), timedelta(days=900)), st.integers(-14, 14))
def test_a_zone_changes_nothing(opened: datetime, length: timedelta, offset: int) -> None:
    zone = timezone(timedelta(hours=offset))
    sealed = opened + length
    assert coverage("It", opened.astimezone(zone), sealed.astimezone(zone), None) == coverage(
        "It", opened, sealed, None
    )


def test_impossible_spans_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot end"):
        coverage("It", at(5), at(4), None)
    with pytest.raises(ValueError, match="no time zone"):
        coverage("It", datetime(2001, 3, 4), at(5), None)
