"""Which draft tokens of a step are worth verifying, all requests together.

A step of B requests emits B tokens whatever happens, and one more for every draft token that is accepted. One more
draft token with path probability q pays if and only if it raises tokens per second: (E + q) / T(n + 1) > E / T(n), or
q > E (T(n + 1) - T(n)) / T(n), where E is what the step is expected to emit and T(n) its time with n tokens to read.
Candidates of all requests are taken in descending q, so the offline tail (few requests left) gets long drafts and a
full batch gets short ones or none.
"""

import numpy as np
from numpy.typing import NDArray


def affordable(times: NDArray[np.float64], requests: int) -> int:
    """The most draft tokens in a step that could pay: those that do if every one is accepted.

    `times[j]` is the time of a step with j draft tokens besides the `requests` tokens it reads anyway.
    """
    rate = (requests + np.arange(len(times))) / times
    return int(np.argmax(rate))


def lengths(probability: NDArray[np.float32], times: NDArray[np.float64], requests: int) -> NDArray[np.int64]:
    """How many tokens of each draft to verify, shape [n].

    `probability` [n, K] holds path probabilities, not rising along a row and 0 past the end of a draft. `times[j]` is
    the time of a step with j draft tokens besides the `requests` tokens it reads anyway; candidates past its end are
    not considered. Of all prefixes of the order (descending probability, then position, then row) the one with the most
    expected tokens per second is taken, which is the rule above where T is convex, and no trap where it has steps.
    """
    n, width = probability.shape
    # Column by column, so that a stable sort keeps earlier positions and smaller rows first among equals.
    by_position = probability.T.ravel()
    order = np.argsort(-by_position, kind="stable")
    order = order[: min(int(np.count_nonzero(by_position > 0)), len(times) - 1)]
    expected = requests + np.concatenate(([0.0], np.cumsum(by_position[order], dtype=np.float64)))
    taken = order[: int(np.argmax(expected / times[: len(expected)]))]
    return np.bincount(taken % n, minlength=n) if width else np.zeros(n, np.int64)


def expected_rate(
    probability: NDArray[np.float32], kept: NDArray[np.int64], times: NDArray[np.float64], requests: int
) -> float:
    """Expected tokens per second of a step with the first `kept` tokens of each draft."""
    chosen = np.arange(probability.shape[1]) < kept[:, None]
    return float((requests + probability[chosen].sum(dtype=np.float64)) / times[int(kept.sum())])
