"""Spans of time in words that a language model can use: units of a human scale, month names, no clock times.

Dates are days in UTC, written without regard to the locale. Seasons are left out: they depend on the hemisphere.
"""

from datetime import UTC, date, datetime

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
# Below two weeks days are exact; then the unit of which there are at least two. Days in a unit, first day that uses it.
_UNITS = (("year", 365.25, 730), ("month", 30.4375, 60), ("week", 7.0, 14))


def duration(days: int) -> str:
    """`days` as `1 day`, `9 days`, `about 3 weeks`, `about 5 months` or `about 2 years`; it never goes back.

    Raises ValueError below one day.
    """
    if days < 1:
        raise ValueError(f"A duration in words starts at one day, got {days}")
    for unit, length, first in _UNITS:
        if days >= first:
            return f"about {round(days / length)} {unit}s"
    return "1 day" if days == 1 else f"{days} days"


def dates(first: date, last: date) -> str:
    """`4 March 2001`, `4 to 26 March 2001`, `4 March to 2 April 2001` or `28 December 2000 to 4 January 2001`."""
    end = f"{last.day} {_MONTHS[last.month - 1]} {last.year}"
    if first == last:
        return end
    month = f" {_MONTHS[first.month - 1]}" if (first.year, first.month) != (last.year, last.month) else ""
    year = f" {first.year}" if first.year != last.year else ""
    return f"{first.day}{month}{year} to {end}"


def coverage(subject: str, opened_at: datetime, sealed_at: datetime, previous_end: datetime | None) -> str:
    """A sentence on when `subject` was and how long after what came before it.

    Raises ValueError for times without a zone and for an end before the beginning.
    """
    first, last = _day(opened_at), _day(sealed_at)
    if opened_at > sealed_at:
        raise ValueError(f"A partition cannot end ({sealed_at}) before it begins ({opened_at})")
    if first == last:
        sentence = f"{subject} is from a single day, {dates(first, last)}"
    else:
        sentence = f"{subject} covers {duration((last - first).days + 1)}, {dates(first, last)}"
    if previous_end is None:
        return f"{sentence}."
    gap = (first - _day(previous_end)).days
    # Events that arrive late enter the open partition, so it may begin before the one before it ended.
    if opened_at < previous_end:
        return f"{sentence}, and overlaps with the user's earlier history."
    if gap == 0:
        return f"{sentence}, and begins on the day on which the user's earlier history ended."
    return f"{sentence}, and begins {duration(gap)} after the user's earlier history ended."


def _day(at: datetime) -> date:
    if at.tzinfo is None:
        raise ValueError(f"Times of a span are in UTC, but {at} has no time zone")
    return at.astimezone(UTC).date()
