"""The texts of a running job, finished or still being written, indexed anew as they grow, beside the steps.

An index is started when enough tokens have come since the last one, and put into use a fixed number of steps later, so
that what a draft draws on never depends on how fast a thread was: workers that see the same steps agree.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from augment.speculation.contexts import ContextIndex, build_index

# New tokens that are worth a new index: this part of those indexed, and no fewer than a sentence or two. A run's first
# texts are the ones that it learns most from.
_WORTH_PART = 1 / 8
_WORTH_LEAST = 48
# Steps while an index is made, one for so many tokens: the step that needs it then seldom waits.
_TOKENS_PER_LEAD = 20_000


class RecentTexts:
    """An index of the last `max_tokens` tokens of the job's texts, its arrays as wide as those of `like`.

    A text has a number from `begin` on, in ascending order; in `index` it is `number - dropped`.
    """

    def __init__(self, like: ContextIndex, max_tokens: int) -> None:
        self._like, self._max_tokens = like, max_tokens
        self.index = build_index([], like)
        self.dropped = 0  # texts before the index's first one
        self._texts: list[NDArray[np.int32]] = []
        self._open: set[int] = set()
        self._tokens = self._removed = self._indexed = self._fresh = self._waited = 0
        self._making: tuple[Future[ContextIndex], int, int] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def begin(self) -> int:
        """The number of a new text, which is empty so far."""
        self._texts.append(np.zeros(0, np.int32))
        number = self._removed + len(self._texts) - 1
        self._open.add(number)
        return number

    def finish(self, number: int, text: NDArray[np.int32]) -> None:
        """Take in the whole of a text."""
        self._fresh += max(len(text) - self._length(number), 0)
        self._set(number, text)
        self._open.discard(number)

    def step(self, fresh: int, written: Callable[[], dict[int, NDArray[np.int32]]]) -> bool:
        """Take in a step that emitted `fresh` tokens; true if another index is in use from now on.

        `written` gives the texts under way as far as they go, by number; it is called only when an index is started.
        Other texts that were begun and not finished are taken for given up.
        """
        self._fresh += fresh
        exchanged = False
        if self._making is not None:
            self._waited += 1
            made, dropped, tokens = self._making
            if self._waited > tokens // _TOKENS_PER_LEAD:
                self.index, self.dropped, self._indexed, self._making = made.result(), dropped, tokens, None
                exchanged = True
        if self._making is None and self._fresh >= max(_WORTH_LEAST, self._indexed * _WORTH_PART):
            self._start(written())
        return exchanged

    def _start(self, written: dict[int, NDArray[np.int32]]) -> None:
        for number in self._open - written.keys():
            self._set(number, np.zeros(0, np.int32))
        self._open &= written.keys()
        for number, text in written.items():
            self._set(number, text)
        while self._tokens > self._max_tokens:
            self._tokens -= len(self._texts.pop(0))
            self._removed += 1
        unended = np.array([self._removed + i in self._open for i in range(len(self._texts))], np.bool_)
        self._thread = self._thread or ThreadPoolExecutor(1, "recent-texts")
        made = self._thread.submit(build_index, list(self._texts), self._like, unended)
        self._making = made, self._removed, self._tokens
        self._fresh = self._waited = 0

    def _length(self, number: int) -> int:
        return len(self._texts[number - self._removed]) if number >= self._removed else 0

    def _set(self, number: int, text: NDArray[np.int32]) -> None:
        if number >= self._removed:
            self._tokens += len(text) - self._length(number)
            self._texts[number - self._removed] = text
