"""The texts that a running job has finished, indexed anew as they grow, beside the steps.

An index is started when enough texts have come since the last one, and put into use a fixed number of texts later, so
that which texts a draft draws on never depends on how fast a thread was: workers that see the same texts agree.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from augment.speculation.contexts import ContextIndex, build_index

# New texts that are worth a new index: this part of those indexed, and at first every single one. A run's first texts
# are the ones that it learns most from.
_WORTH_PART = 1 / 8
# Texts that finish while an index is made, one for so many indexed: the step that needs it then seldom waits.
_TEXTS_PER_LEAD = 16
_LONGEST_LEAD = 4


class RecentTexts:
    """An index of the last `max_tokens` tokens of finished texts, its arrays as wide as those of `like`."""

    def __init__(self, like: ContextIndex, max_tokens: int) -> None:
        self._like, self._max_tokens = like, max_tokens
        self.index = build_index([], like)
        self.dropped = 0  # texts before the index's first one
        self._texts: list[NDArray[np.int32]] = []
        self._tokens = self._removed = self._indexed = self._since = 0
        self._making: tuple[Future[ContextIndex], int, int] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def add(self, text: NDArray[np.int32]) -> bool:
        """Take in a finished text; true if another index is in use from now on."""
        if not len(text) or len(text) > self._max_tokens:
            return False
        self._texts.append(text)
        self._tokens += len(text)
        while self._tokens > self._max_tokens:
            self._tokens -= len(self._texts.pop(0))
            self._removed += 1
        self._since += 1
        lead = min(1 + self._indexed // _TEXTS_PER_LEAD, _LONGEST_LEAD)
        exchanged = self._making is not None and self._since >= lead
        if self._making is not None and exchanged:
            made, self.dropped, self._indexed = self._making
            self.index, self._making = made.result(), None
        if self._making is None and self._new_texts() >= max(1, self._indexed * _WORTH_PART):
            self._thread = self._thread or ThreadPoolExecutor(1, "recent-texts")
            made = self._thread.submit(build_index, list(self._texts), self._like)
            self._making = made, self._removed, len(self._texts)
            self._since = 0
        return exchanged

    def _new_texts(self) -> int:
        return self._removed + len(self._texts) - self.dropped - self._indexed
