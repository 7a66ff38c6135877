"""How often drafts are accepted that claimed a certain probability, learned while drafting."""

import numpy as np
from numpy.typing import NDArray

_BINS = 20
# Each bin starts as if it had seen this many drafts, accepted as often as they claimed.
_PRIOR = 24.0


class Calibration:
    """A never-falling map from claimed to observed acceptance; the identity before anything was observed.

    Relaxed verification accepts more than a drafter that counts equal continuations claims, a new scenario less. It
    holds no clock: equal steps in equal order give equal drafts.
    """

    def __init__(self) -> None:
        self._centres = (np.arange(_BINS) + 0.5) / _BINS
        self._tries = np.full(_BINS, _PRIOR)
        self._hits = _PRIOR * self._centres
        self._claimed = np.concatenate(([0.0], self._centres, [1.0]))
        self._observed = self._claimed.copy()

    def apply(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """Observed acceptance for claimed path probabilities, same shape; 0 stays 0, and order stays order."""
        observed: NDArray[np.float32] = np.interp(probability, self._claimed, self._observed).astype(np.float32)
        return observed

    def observe(
        self, probability: NDArray[np.float32], drafted: NDArray[np.int64], accepted: NDArray[np.int64]
    ) -> None:
        """Take in drafts as verified: `probability` [n, K] as claimed, lengths and accepted lengths of shape [n]."""
        at = np.arange(probability.shape[1])
        verified = at < drafted[:, None]
        bins = np.minimum((probability[verified] * _BINS).astype(np.int64), _BINS - 1)
        hit = (at < accepted[:, None])[verified]
        self._tries += np.bincount(bins, minlength=_BINS)
        self._hits += np.bincount(bins, weights=hit, minlength=_BINS)
        shares = np.maximum.accumulate(self._hits / self._tries)
        self._observed = np.concatenate(([0.0], shares, [max(shares[-1], 1.0)]))
