"""Drafts for a batch: one sequence per request that is likely to be what the model says next.

A draft is extended token by token with the likeliest next one (`evidence`, `mixing`) until its probability, the
product along the path, falls under the limit. What a request's own text and the pool say of the next token is kept up
to date by the tokens that came since the last call, never searched for again.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from augment.speculation import evidence, mixing
from augment.speculation.contexts import MAX_ORDER, TEXT_MASK, begin, build_index, extend
from augment.speculation.evidence import CANDIDATES, COUNT_SLOTS
from augment.speculation.recent import RecentTexts

if TYPE_CHECKING:
    from augment.speculation.pool import RetrievalPool

# The most likely of the pool's candidates are met first, and room is left for those of recent texts.
_POOL_CANDIDATES = CANDIDATES - 6
# What a text of the request's own group is worth, in shared stretches that occur once elsewhere (a quarter each).
_GROUP_AFFINITY = np.float32(0.03)
# Below this a second thread costs more to wake than it saves.
_ROWS_PER_THREAD = 16


class DraftingConfig(BaseModel, frozen=True, extra="forbid"):
    """How long drafts may get, and what they may draw on."""

    max_draft_tokens: int = Field(default=32, ge=1, le=128)
    # Of the path up to a token, that all of it is accepted. Lower drafts more tokens for each that is accepted.
    min_probability: float = Field(default=0.1, ge=0.0, lt=1.0)
    # True: what is drafted depends on the pool and the request alone, not on the texts written before and beside it.
    frozen: bool = False
    # Recent texts are indexed anew as they grow, beside the steps; these many tokens take about a second of a core.
    recent_tokens: int = Field(default=4_000_000, ge=0)
    # The step's critical path; vLLM keeps the other cores busy.
    threads: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Drafts:
    """`tokens` int32 [n, K] and `probability` float32 [n, K]: that all of the draft up to there is accepted, falling
    along a row and 0 past its end."""

    tokens: NDArray[np.int32]
    probability: NDArray[np.float32]


class _Rows(NamedTuple):
    """What is known of each row; sources are 0 the pool, 1 recent texts."""

    prompt: NDArray[np.int64]  # [rows] length of the prompt, -1 before a row's first start
    length: NDArray[np.int64]  # [rows] tokens taken in
    group: NDArray[np.int64]  # [rows] number of the group, -1 for none
    text: NDArray[np.int64]  # [rows] number of the row's own text among the recent ones, -1 for none
    order: NDArray[np.int64]  # [rows, 2] length of the longest known context
    low: NDArray[np.int64]  # [rows, 2, MAX_ORDER + 1] its intervals by length
    high: NDArray[np.int64]
    affinity: NDArray[np.float32]  # [rows, slots] how like the request each text is
    heads: NDArray[np.int32]  # [rows, COUNT_SLOTS] latest place of each token that has a follower
    links: NDArray[np.int32]  # [rows, max_length] the place before with the same slot
    seen: NDArray[np.uint16]  # [rows, COUNT_SLOTS] tokens counted


class Drafter:
    """Drafts for up to `max_rows` requests of up to `max_length` tokens at a time; one caller at a time.

    The first one on a machine compiles for half a minute or so; later ones, in other processes too, load the result.
    """

    def __init__(self, pool: "RetrievalPool | None", config: DraftingConfig, max_rows: int, max_length: int) -> None:
        self.config = config
        self._base = pool.index if pool else build_index([])
        self._mixer = pool.mixer if pool else mixing.unfitted()
        self._groups = pool.groups if pool else {}
        self._text_groups = pool.text_groups if pool else np.zeros(0, np.uint16)
        self._texts = pool.texts if pool else 0
        self._recent = RecentTexts(self._base, config.recent_tokens)
        slots = evidence.text_slots(self._texts)
        self._rows = _Rows(
            prompt=np.full(max_rows, -1, np.int64),
            length=np.zeros(max_rows, np.int64),
            group=np.full(max_rows, -1, np.int64),
            text=np.full(max_rows, -1, np.int64),
            order=np.zeros((max_rows, 2), np.int64),
            low=np.zeros((max_rows, 2, MAX_ORDER + 1), np.int64),
            high=np.zeros((max_rows, 2, MAX_ORDER + 1), np.int64),
            affinity=np.zeros((max_rows, slots), np.float32),
            heads=np.full((max_rows, COUNT_SLOTS), -1, np.int32),
            links=np.full((max_rows, max_length), -1, np.int32),
            seen=np.zeros((max_rows, COUNT_SLOTS), np.uint16),
        )
        self._threads = ThreadPoolExecutor(config.threads - 1) if config.threads > 1 else None
        # Compile now and not in a step: drafting for no rows does nothing else.
        self._forget(0)
        none = np.zeros(0, np.int32)
        self.propose(np.zeros((1, 1), np.int32), none, none, none)

    def start(self, row: int, prompt_length: int, group: str | None = None) -> None:
        """`row` now holds a new request: forget what was known of it."""
        self._rows.prompt[row] = prompt_length
        self._rows.group[row] = -1 if group is None else self._groups.get(group, -1)
        if not self.config.frozen:
            self._rows.text[row] = self._recent.begin()
        self._forget(row)

    def propose(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int32],
        rows: NDArray[np.int32],
        limits: NDArray[np.int32],
    ) -> Drafts:
        """A draft for each of `rows` [n], of at most `limits` [n] tokens.

        `tokens` [max_rows, max_length] are prompt and output of each row, `lengths` [max_rows] how many are valid. A
        row shorter than it was is taken in anew. Raises ValueError for a row that was never started.
        """
        # Other types would be compiled for anew.
        tokens, lengths, rows = (np.ascontiguousarray(array, np.int32) for array in (tokens, lengths, rows))
        unknown = rows[self._rows.prompt[rows] < 0]
        if len(unknown):
            raise ValueError(f"Rows {unknown.tolist()} were never started; call start(row, prompt_length) first.")
        for row in rows[lengths[rows] < self._rows.length[rows]]:
            self._forget(int(row))
        if len(rows) and not self.config.frozen:
            self._renew_recent(tokens, lengths, rows)
        n, most = len(rows), self.config.max_draft_tokens
        drafts = Drafts(np.zeros((n, most), np.int32), np.zeros((n, most), np.float32))
        limits = np.minimum(limits, most).astype(np.int32, copy=False)
        workers = min(self.config.threads, max(1, n // _ROWS_PER_THREAD))
        bounds = [n * part // workers for part in range(workers + 1)]
        calls = [(tokens, lengths, rows, limits, drafts, *part) for part in pairwise(bounds)]
        # This thread takes the first part: it is awake already.
        others = [self._threads.submit(self._propose_part, *call) for call in calls[1:]] if self._threads else []
        self._propose_part(*calls[0])
        for other in others:
            other.result()
        return drafts

    def finish(self, row: int, tokens: NDArray[np.int32]) -> None:
        """`tokens` (output only) is the whole text of `row`, which is free from now on.

        It can be drafted from like all texts of the job, unless the config says frozen: with the next index of recent
        texts, which is made beside the steps and put into use after a number of steps that depends on nothing but them.
        """
        self._rows.prompt[row] = -1
        if not self.config.frozen:
            self._recent.finish(int(self._rows.text[row]), np.array(tokens, np.int32))
            self._rows.text[row] = -1

    def _renew_recent(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
        """Let recent texts take in the step that was just done."""
        prompt, known = self._rows.prompt[rows], self._rows.length[rows]
        fresh = np.maximum(lengths[rows] - np.maximum(known, prompt), 0)

        def written() -> dict[int, NDArray[np.int32]]:
            return {
                int(self._rows.text[row]): tokens[row, self._rows.prompt[row] : lengths[row]].copy() for row in rows
            }

        if self._recent.step(int(fresh.sum()), written):
            # The new index knows nothing of the rows yet; texts keep their slots of affinity.
            self._rows.order[self._rows.prompt >= 0, 1] = -1

    def _forget(self, row: int) -> None:
        _forget(self._rows, row, self._base, self._recent.index, self._text_groups, _GROUP_AFFINITY)

    def _propose_part(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int32],
        rows: NDArray[np.int32],
        limits: NDArray[np.int32],
        drafts: Drafts,
        first: int,
        last: int,
    ) -> None:
        _propose(
            self._rows,
            self._base,
            self._recent.index,
            self._texts + self._recent.dropped,
            self._recent.dropped,
            self._mixer,
            tokens,
            lengths,
            rows[first:last],
            limits[first:last],
            self.config.min_probability,
            drafts.tokens[first:last],
            drafts.probability[first:last],
        )


class Session:
    """One request drafted for by itself, for use outside a batched engine: see RetrievalPool.session."""

    def __init__(
        self,
        pool: "RetrievalPool",
        prompt_ids: Sequence[int],
        group: str | None,
        config: DraftingConfig | None = None,
        max_length: int = 32_768,
    ) -> None:
        # Alone with its text, it has no others to learn from.
        self._config = (config or DraftingConfig()).model_copy(update={"frozen": True})
        self._tokens = np.zeros((1, max_length), np.int32)
        self._length = np.zeros(1, np.int32)
        self._drafter = Drafter(pool, self._config, 1, max_length)
        self.accept(prompt_ids)
        self._drafter.start(0, len(prompt_ids), group)

    def propose(self, max_tokens: int) -> list[int]:
        """At most `max_tokens` that are likely to come next; may be empty."""
        limit = np.array([max_tokens], np.int32)
        drafts = self._drafter.propose(self._tokens, self._length, np.zeros(1, np.int32), limit)
        drafted: list[int] = drafts.tokens[0, : np.count_nonzero(drafts.probability[0])].tolist()
        return drafted

    def accept(self, token_ids: Sequence[int]) -> None:
        """Take in what the model emitted. Raises ValueError when the text outgrows the session's `max_length`."""
        start, end = int(self._length[0]), int(self._length[0]) + len(token_ids)
        if end > self._tokens.shape[1]:
            raise ValueError(f"The text would have {end} tokens; this session holds {self._tokens.shape[1]}.")
        self._tokens[0, start:end] = token_ids
        self._length[0] = end


@njit(cache=True, nogil=True)
def _forget(rows, row, base, recent, text_groups, group_affinity):  # type: ignore[no-untyped-def]
    rows.length[row] = 0
    rows.heads[row] = -1
    rows.seen[row] = 0
    rows.affinity[row] = 0
    mask = rows.affinity.shape[1] - 1
    if rows.group[row] >= 0:
        for text in range(text_groups.shape[0]):
            if text_groups[text] == rows.group[row]:
                rows.affinity[row, text & mask] += group_affinity
    rows.order[row, 0] = begin(base, rows.low[row, 0], rows.high[row, 0])
    rows.order[row, 1] = begin(recent, rows.low[row, 1], rows.high[row, 1])


@njit(cache=True, nogil=True)
def _catch_up(rows, row, base, recent, offset, own, tokens, length):  # type: ignore[no-untyped-def]
    """Take in the tokens that came since the last call; `own` is the row's text among the recent ones, or -1."""
    text, affinity = tokens[row], rows.affinity[row]
    prompt, known = rows.prompt[row], rows.length[row]
    if rows.order[row, 1] < 0:
        begun = max(prompt, known - MAX_ORDER)
        order = 0
        if begun == prompt:
            order = begin(recent, rows.low[row, 1], rows.high[row, 1])
        for place in range(begun, known):
            order = extend(recent, text[place], order, rows.low[row, 1], rows.high[row, 1])
        rows.order[row, 1] = order
    for place in range(known, length):
        evidence.append_own(text, place, rows.heads[row], rows.links[row], rows.seen[row])
        if place >= prompt:
            for source in range(2):
                low, high, order = rows.low[row, source], rows.high[row, source], rows.order[row, source]
                if source == 0:
                    order = evidence.follow_index(base, text[place], order, low, high, affinity, 0, -1)
                else:
                    order = evidence.follow_index(recent, text[place], order, low, high, affinity, offset, own)
                rows.order[row, source] = order
    rows.length[row] = length


@njit(cache=True, nogil=True)
def _propose(  # type: ignore[no-untyped-def]
    rows, base, recent, offset, dropped, mixer, tokens, lengths, chosen, limits, least, drafted, probability
):
    """Fill `drafted` and `probability` [n, K] for the `chosen` rows [n].

    Recent texts count from slot `offset` of the affinities, and from number `dropped`; a row's own is passed over.
    """
    scratch = evidence.make_scratch()
    room = np.empty((3, mixing.HIDDEN), np.float32)
    low, high = np.empty((2, MAX_ORDER + 1), np.int64), np.empty((2, MAX_ORDER + 1), np.int64)
    reach = evidence.ORDERS[-1]
    tail = np.empty(reach + drafted.shape[1], np.int32)
    for i in range(chosen.shape[0]):
        row = chosen[i]
        length = lengths[row]
        own = rows.text[row] - dropped
        own = own & TEXT_MASK if own >= 0 else np.int64(-1)
        _catch_up(rows, row, base, recent, offset, own, tokens, length)
        size = min(length, reach)
        tail[:size] = tokens[row, length - size : length]
        low[:], high[:] = rows.low[row], rows.high[row]
        orders = rows.order[row, 0], rows.order[row, 1]
        path = np.float32(1.0)
        for k in range(limits[i]):
            evidence.clear(scratch)
            known = 0
            if size:
                head = rows.heads[row, tail[size - 1] & (COUNT_SLOTS - 1)]
                known = evidence.collect_own(scratch, tokens[row], rows.links[row], head, tail, size)
            affinity = rows.affinity[row]
            known = evidence.collect_pool(
                scratch, known, _POOL_CANDIDATES, base, orders[0], low[0], high[0], affinity, 0, -1
            )
            shared = orders[0]
            if orders[1]:
                known = evidence.collect_pool(
                    scratch, known, CANDIDATES, recent, orders[1], low[1], high[1], affinity, offset, own
                )
                shared = max(shared, evidence.shared_order(recent, orders[1], low[1], high[1], own))
            kept = evidence.describe(scratch, known, shared, rows.seen[row])
            token, likely = mixing.most_likely(scratch, kept, mixer, room)
            path *= likely
            # -1 is the end of the text: nothing to draft behind it.
            if token < 0 or path < least or path <= 0:
                break
            drafted[i, k], probability[i, k] = token, path
            tail[size] = token
            size += 1
            orders = (
                extend(base, token, orders[0], low[0], high[0]),
                extend(recent, token, orders[1], low[1], high[1]),
            )
