"""Which request sits in which row of vLLM's batch, and what speculation did for it.

vLLM tells a proposer the tokens of each row and nothing else, while rows change hands: a finished request leaves its
row to a new one, the last row moves into a gap, a preempted request comes back elsewhere with the tokens it had. The
model runner's own batch (`input_batch`, `requests`) names the request of every row; this file follows it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from augment.speculation.config import GROUP

# Counts of texts that left are kept until they are asked for; a caller that never asks must not fill the memory.
_MOST_KEPT = 65_536


class Batch(Protocol):
    """What is read of vLLM's InputBatch."""

    @property
    def req_ids(self) -> list[str]: ...

    num_prompt_tokens: NDArray[np.int32]


@dataclass(frozen=True)
class Counts:
    """What speculation did for one text.

    `drafted` tokens were verified, `accepted` of them stand in the text, `relaxed` of these only thanks to relaxed
    verification; `steps` counts decoding steps, the one that read the prompt aside.
    """

    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    steps: int = 0


@dataclass
class _Record:
    """A request: what never changes of it, and what its row holds while it has one."""

    prompt: int
    limit: int
    group: str | None
    state: Any
    drafts: bool
    length: int
    pending: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(5, np.int64))
    taken: bool = False


@dataclass(frozen=True)
class Moved:
    """A row that now holds another request than before."""

    row: int
    prompt_length: int
    group: str | None


@dataclass(frozen=True)
class Finished:
    """A request that left: the row it had last, and the tokens of its text without the one that ended it."""

    row: int
    tokens: NDArray[np.int32]


@dataclass(frozen=True)
class Verified:
    """Drafts as relaxed verification saw them: which tokens of all drafts passed only by relaxation, flat in the order
    of rows, and each row's number of draft tokens."""

    relaxed: NDArray[np.bool_]
    drafted: NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """What a step did, by row [n]: tokens drafted for it, how many were accepted, and whether the text goes on.

    `decoding` is false where (a part of) a prompt was read.
    """

    drafted: NDArray[np.int64]
    accepted: NDArray[np.int64]
    goes_on: NDArray[np.bool_]
    decoding: NDArray[np.bool_]


class Rows:
    """The batch, row by row: `sync` before anything else in a step, `settle` once its tokens are known."""

    def __init__(
        self,
        max_rows: int,
        max_length: int,
        vocabulary: int,
        odd_marks: NDArray[np.bool_] | None = None,
        greedy_only: bool = False,
    ) -> None:
        """`odd_marks` [vocabulary], where given, says which tokens hold an odd number of quotation marks.

        With `greedy_only`, a request that samples has no room for drafts.
        """
        self._max_length, self._odd_marks, self._greedy_only = max_length, odd_marks, greedy_only
        self._names: list[str] = []
        self._records: dict[str, _Record] = {}
        self._left: dict[str, Counts] = {}
        self.is_stop = np.zeros(vocabulary, bool)
        self._limit = np.zeros(max_rows, np.int64)
        self._drafts = np.zeros(max_rows, bool)
        self._prompt = np.zeros(max_rows, np.int64)
        self._length = np.zeros(max_rows, np.int64)
        self._pending = np.zeros(max_rows, np.int64)
        # Columns: drafted, accepted, relaxed, steps, tokens with an odd number of quotation marks.
        self._counts = np.zeros((max_rows, 5), np.int64)

    @property
    def relaxed(self) -> NDArray[np.int64]:
        """Relaxed acceptances in the text of each row so far, shape [max_rows]."""
        return self._counts[:, 2]

    @property
    def in_quotes(self) -> NDArray[np.bool_]:
        """Whether the text of each row ends between quotation marks, shape [max_rows]."""
        inside: NDArray[np.bool_] = self._counts[:, 4] % 2 == 1
        return inside

    def room(self, n: int) -> NDArray[np.int64]:
        """How many draft tokens could still become text, for the first `n` rows: the step itself emits one more."""
        left: NDArray[np.int64] = np.maximum(self._limit[:n] - self._length[:n] - 1, 0) * self._drafts[:n]
        return left

    def draft(self, lengths: NDArray[np.int64]) -> None:
        """Remember how many tokens were drafted for the next step of the first rows."""
        self._pending[: len(lengths)] = lengths

    def sync(self, batch: Batch, requests: Mapping[str, Any]) -> tuple[list[Moved], list[Finished]]:
        """Rows that changed hands since the last call, and requests that left; both empty in most steps."""
        before, after = self._names, batch.req_ids
        if before == after:
            return [], []
        here = set(after)
        changed = [row for row, name in enumerate(before) if row >= len(after) or after[row] != name]
        finished = []
        for row in changed:
            record = self._lift(row)
            if before[row] not in here:
                # vLLM drops the draft of a request that it preempts.
                record.pending = 0
                if before[row] not in requests:
                    finished.append(Finished(row, self._text(record)))
        for name in [name for name in self._records if name not in requests]:
            self._leave(name)
        moved = [
            self._place(row, name, batch, requests)
            for row, name in enumerate(after)
            if row >= len(before) or before[row] != name
        ]
        self._names = list(after)
        return moved, finished

    def restart(self) -> None:
        """Let the next `sync` name every row as moved."""
        for row in range(len(self._names)):
            self._lift(row)
        self._names = []

    def settle(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], verified: Verified | None) -> Step:
        """Take in a step: `tokens` [max_rows, max_length], `lengths` [n] valid ones of the first n rows after it.

        Tokens past a stop token or past a request's limit are what vLLM cuts off; they count nowhere.
        """
        n = len(lengths)
        before = self._length[:n].copy()
        emitted = lengths - before
        kept = np.minimum(emitted, self._limit[:n] - before)
        row = np.repeat(np.arange(n), emitted)
        place = np.arange(len(row)) - np.repeat(np.cumsum(emitted) - emitted, emitted)
        new = tokens[row, before[row] + place]
        stops = self.is_stop[new]
        if stops.any():
            np.minimum.at(kept, row[stops], place[stops] + 1)
        stopped = np.zeros(n, bool)
        stopped[row[stops]] = True
        own = np.where(kept < emitted, 0, 1)
        accepted = np.maximum(kept - own, 0)
        drafted = np.where(emitted > 0, np.maximum(self._pending[:n], accepted), 0)
        decoding = (before > self._prompt[:n]) & (emitted > 0)
        counts = self._counts[:n]
        counts[:, 0] += drafted
        counts[:, 1] += accepted
        counts[:, 3] += decoding
        if self._odd_marks is not None:
            counts[:, 4] += np.bincount(row[self._odd_marks[new]], minlength=n)
        if verified is not None and len(verified.drafted) == n:
            counts[:, 2] += _first(verified, accepted)
        self._length[:n] = before + kept
        self._pending[:n] = 0
        goes_on = (emitted > 0) & ~stopped & (self._length[:n] < self._limit[:n])
        return Step(drafted, accepted, goes_on, decoding)

    def take(self, ids: Iterable[str]) -> dict[str, Counts]:
        """Counts of the texts of these requests, named by the caller's own ids; each can be asked for once."""
        active = {_given_id(name): name for name in self._records}
        places = {name: row for row, name in enumerate(self._names)}
        found = {}
        for name in ids:
            if name in self._left:
                found[name] = self._left.pop(name)
            elif name in active:
                record = self._records[active[name]]
                row = places.get(active[name])
                found[name] = _as_counts(record.counts if row is None else self._counts[row])
                record.taken = True
        return found

    def _text(self, record: _Record) -> NDArray[np.int32]:
        tokens = np.asarray(record.state.output_token_ids[: record.length - record.prompt], np.int32)
        return tokens[:-1] if len(tokens) and self.is_stop[tokens[-1]] else tokens

    def _lift(self, row: int) -> _Record:
        record = self._records[self._names[row]]
        record.length, record.pending = int(self._length[row]), int(self._pending[row])
        record.counts = self._counts[row].copy()
        return record

    def _place(self, row: int, name: str, batch: Batch, requests: Mapping[str, Any]) -> Moved:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = self._new(int(batch.num_prompt_tokens[row]), requests[name])
        self._prompt[row], self._limit[row], self._drafts[row] = record.prompt, record.limit, record.drafts
        self._length[row], self._pending[row] = record.length, record.pending
        self._counts[row] = record.counts
        return Moved(row, record.prompt, record.group)

    def _new(self, prompt: int, state: Any) -> _Record:
        params = state.sampling_params
        most = params.max_tokens if params.max_tokens is not None else self._max_length
        ends = params.stop_token_ids if params.ignore_eos else params.all_stop_token_ids
        self.is_stop[list(ends)] = True
        group = (params.extra_args or {}).get(GROUP)
        drafts = not self._greedy_only or params.temperature == 0
        return _Record(prompt, min(prompt + most, self._max_length), group, state, drafts, prompt)

    def _leave(self, name: str) -> None:
        record = self._records.pop(name)
        if record.taken:
            return
        self._left[_given_id(name)] = _as_counts(record.counts)
        if len(self._left) > _MOST_KEPT:
            del self._left[next(iter(self._left))]


def _as_counts(row: NDArray[np.int64]) -> Counts:
    return Counts(*row[:4].tolist())


def _given_id(name: str) -> str:
    """The caller's id of a request: vLLM appends a dash and a random part to it."""
    return name.rpartition("-")[0] or name


def _first(verified: Verified, accepted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Relaxed tokens among the first `accepted` draft tokens of each row."""
    until = np.concatenate(([0], np.cumsum(verified.relaxed)))
    start = np.cumsum(verified.drafted) - verified.drafted
    relaxed: NDArray[np.int64] = until[start + np.minimum(accepted, verified.drafted)] - until[start]
    return relaxed
