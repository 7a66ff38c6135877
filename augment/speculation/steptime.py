"""How long a decoding step takes, by the number of tokens the model has to read in it.

A table is measured at start on the engine itself; what it leaves out (scheduler, sampling, attention over the context)
and what has changed since then is fitted to the steps of the run: T(n) = overhead + scale * table(n).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Weight of the newest step in the fit: what happened a few hundred steps ago no longer counts.
_MEMORY = 0.995
# The table counts as much as this many steps when its scale is fitted.
_TRUST = 30.0
_SCALES = (0.1, 10.0)
# What a single step says of its own number of tokens counts 1/2 at first, and 1/16 in the end.
_MOST_DOUBT = 15.0
# Fewer steps than this, forgetting counted, are not knowledge.
_KNOWN = 0.9
# Doubling the tokens makes time this many times longer where it has become a straight line.
_STRAIGHT = 1.7
# Of an average token's time, what one more token takes at least, past the end of a table.
_LEAST_SLOPE = 0.6
# A step that took this many times the expected time was disturbed from outside; after so many in a row it is no
# disturbance but the machine's new pace.
_OUTLIER = 3.0
_OUTLIERS = 5


@dataclass(frozen=True)
class StepTable:
    """Seconds of the model's forward pass by tokens; both ascending, at least two entries."""

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    def upto(self, most: int) -> NDArray[np.float64]:
        """Seconds of 0, 1, ..., `most` tokens, shape [most + 1]: straight between entries, and past them.

        What disturbs a run only adds to it, so no entry counts for more than a later one. Past the last entry a token
        costs what it did over the second half of the table, and no less than most of an average one: a table that ends
        early must not promise that tokens are free.
        """
        at = np.arange(most + 1, dtype=np.float64)
        tokens = np.asarray(self.tokens, np.float64)
        seconds = np.minimum.accumulate(np.asarray(self.seconds, np.float64)[::-1])[::-1]
        half = max(int(np.searchsorted(tokens[:-1], tokens[-1] / 2, side="right")) - 1, 0)
        slope = (seconds[-1] - seconds[half]) / (tokens[-1] - tokens[half])
        slope = max(slope, _LEAST_SLOPE * seconds[-1] / tokens[-1])
        times: NDArray[np.float64] = np.interp(at, tokens, seconds)
        past = at > tokens[-1]
        times[past] = seconds[-1] + slope * (at[past] - tokens[-1])
        return times


def knots(most: int) -> list[int]:
    """Numbers of tokens up to `most` that a table has entries for: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    found = [1]
    power = 2
    while power <= most:
        found += [n for n in (power, power + power // 2) if n <= most and n != found[-1]]
        power *= 2
    return found


def measure(run: Callable[[int], float], most: int, limit_s: float = 8.0, passes: int = 4) -> StepTable:
    """A table of `run(n)`, the seconds of a forward pass over n tokens, for n up to `most`.

    The powers of two come first, until doubling the tokens nearly doubles the time (what follows is a straight line)
    or half of `limit_s` has passed; then the numbers between, and all of them again, until `limit_s`. Each entry is
    the least of its runs, which lie apart in time: what disturbs the machine for a moment spoils no entry.
    """
    best: dict[int, float] = {}
    spent = run(1)
    n = 1
    while n <= most:
        best[n] = run(n)
        spent += best[n]
        straight = n >= 16 and best[n] > _STRAIGHT * best[n // 2]
        if len(best) >= 3 and (straight or spent > limit_s / 2):
            break
        n *= 2
    wanted = knots(max(best))
    for n in (n for _ in range(passes) for n in wanted):
        if spent > limit_s:
            break
        again = run(n)
        spent += again
        best[n] = min(best.get(n, again), again)
    if len(best) == 1:
        best[2] = 2 * best[1]
    tokens = sorted(best)
    return StepTable(tuple(tokens), tuple(best[n] for n in tokens))


class StepClock:
    """T(n) from a table, corrected by the steps of the run.

    Overhead and scale are a least-squares fit with exponential forgetting, drawn to the table's own values (0 and 1)
    by as much as `_TRUST` steps weigh: steps that all read about as many tokens say nothing of the scale. What the fit
    leaves is learned number by number: a table that was measured on a busy machine has the wrong shape as well.
    """

    def __init__(self, table: StepTable, most: int) -> None:
        self._base = table.upto(most)
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self.overhead, self.scale = 0.0, 1.0
        self._disturbed = 0
        self._sizes = np.array(knots(most), np.float64)
        self._ratio = np.ones(len(self._sizes))
        self._seen = np.zeros(len(self._sizes))

    def observe(self, tokens: int, seconds: float) -> None:
        """Take in a step that read `tokens` tokens in `seconds`."""
        x = float(self._base[min(tokens, len(self._base) - 1)])
        at = self._nearest(tokens)
        expected = (self.overhead + self.scale * x) * self._ratio[at]
        disturbed = self._seen[at] > 2 and seconds > _OUTLIER * expected
        self._disturbed = self._disturbed + 1 if disturbed else 0
        if 0 < self._disturbed <= _OUTLIERS:
            return
        self._weight = _MEMORY * self._weight + 1
        self._x = _MEMORY * self._x + x
        self._y = _MEMORY * self._y + seconds
        self._xx = _MEMORY * self._xx + x * x
        self._xy = _MEMORY * self._xy + x * seconds
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx - self._weight * mean_x**2
        together = self._xy - self._weight * mean_x * mean_y
        # The pull towards scale 1 is as strong as steps that spread by a tenth of the mean would be.
        trust = _TRUST * (0.1 * mean_x) ** 2
        scale = (together + trust) / max(spread + trust, 1e-18)
        self.scale = min(max(scale, _SCALES[0]), _SCALES[1])
        self.overhead = max(mean_y - self.scale * mean_x, 0.0)
        self._seen *= _MEMORY
        self._seen[at] += 1
        share = 1 / (1 + min(self._seen[at], _MOST_DOUBT))
        self._ratio[at] += share * (seconds / (self.overhead + self.scale * x) - self._ratio[at])

    def knows(self, tokens: int) -> bool:
        """Whether steps of about so many tokens were seen lately."""
        return bool(self._seen[self._nearest(tokens)] > _KNOWN)

    def times(self, first: int, last: int) -> NDArray[np.float64]:
        """Expected seconds of steps of `first`, ..., `last` tokens, shape [last - first + 1], never falling."""
        last_known = len(self._base) - 1
        wanted = np.arange(first, last + 1)
        at = np.minimum(wanted, last_known)
        slope = self._base[last_known] - self._base[last_known - 1]
        fitted = self.overhead + self.scale * (self._base[at] + slope * (wanted - at))
        known = self._seen > _KNOWN
        times: NDArray[np.float64] = fitted
        if known.any():
            times = fitted * np.interp(wanted, self._sizes[known], self._ratio[known])
        return np.minimum.accumulate(times[::-1])[::-1]

    def _nearest(self, tokens: int) -> int:
        return int(np.abs(self._sizes / max(tokens, 1) - 1).argmin())
