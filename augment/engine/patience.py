"""When to call a server, and when to call again: pace, backoff, and what a server says about waiting.

Clocks and random numbers are arguments: nothing here sleeps.
"""

import math
from datetime import datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Spaces calls so that neither limit per minute is passed, by the virtual scheduling form of GCRA (ITU-T I.371).

    Every call moves the time of the next one by its own cost, 60/limit seconds per request or token, with no burst: the
    calls of any minute, the last aside, cost no more than the limits. Times are seconds of any monotonic clock.
    """

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        self._request_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_tokens = -math.inf

    def reserve(self, now: float, tokens: int) -> float:
        """Seconds to wait before a call of `tokens` (its prompt and the longest answer it may get)."""
        start = max(now, self._next_request, self._next_tokens)
        self._next_request = start + self._request_s
        self._next_tokens = start + self._token_s * tokens
        return start - now

    def give_back(self, tokens: int) -> None:
        """Tokens that were reserved and not used; fewer than none where a call used more."""
        self._next_tokens -= self._token_s * tokens


def longest_backoff_s(failures: int, first_s: float, limit_s: float) -> float:
    """The most to wait after a number of failures in a row: it doubles from `first_s` up to `limit_s`.

    The wait itself is uniform between none and this ("full jitter"): callers that failed together come back apart
    (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """
    # Beyond 2^60 the power would overflow a float long before the limit matters.
    return min(limit_s, first_s * 2.0 ** min(failures - 1, 60))


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks to wait, whether it gives seconds or a date; None where it says neither.

    Never negative: a date of the past asks for no wait (RFC 9110, section 10.2.3).
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            at = parsedate_to_datetime(header)
        except ValueError:
            return None
        # A date without zone is meant in UTC, as every HTTP date is.
        seconds = (at.replace(tzinfo=at.tzinfo or now.tzinfo) - now).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
