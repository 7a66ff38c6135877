"""The drafter as vLLM's model runner calls it, once a step, after the step's tokens are known.

vLLM builds the class from its configuration (`speculative_config = {"method": "custom_class", ...}`) before there is a
pool; `augment.speculation.worker` installs the rest. Until then every draft is empty.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from augment.speculation.budget import affordable, expected_rate, lengths
from augment.speculation.calibration import Calibration
from augment.speculation.rows import Rows, Step
from augment.speculation.steptime import StepClock

if TYPE_CHECKING:
    from augment.speculation.drafting import Drafter

# Where drafts have not paid lately, one step in this many tries again: asking the drafter costs time as well.
_PROBE_EVERY = 16
# One step in this many verifies drafts that seem not to pay, while such steps are unknown.
_EXPLORE_EVERY = 64
# The gain in tokens per second that drafts must promise to be asked for again without probing.
_WORTH = 1.01


@dataclass
class Totals:
    """What speculation did since it was installed.

    `row_steps` counts decoding steps of single requests, so `accepted / row_steps + 1` is tokens per step; `drafts`
    those that verified at least one draft token. `retrieval_s` is what the drafter took of all steps, `proposing_s`
    that with the bookkeeping around it. `timed_s` is the time of the `timed_steps` steps that did nothing but decode,
    `timed_tokens` what the model read in them, and `plain_s` what the tokens they emitted would have taken in steps
    without drafts, by the clock fitted to these.
    """

    steps: int = 0
    row_steps: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    retrieval_s: float = 0.0
    proposing_s: float = 0.0
    timed_steps: int = 0
    timed_s: float = 0.0
    timed_tokens: int = 0
    timed_proposing_s: float = 0.0
    plain_s: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """What the step under way verifies: when it began, its requests and tokens, and the claimed probabilities
    [requests, K] of its drafts, None where there are none."""

    began: float
    requests: int
    tokens: int
    probability: NDArray[np.float32] | None
    proposing_s: float


class PoolProposer:
    """Drafts for every row of a batch, cut by the budget of a step."""

    def __init__(self, vllm_config: Any) -> None:
        """Called by vLLM; drafts nothing before `install`."""
        self.max_draft_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self.totals = Totals()
        self._drafter: Drafter | None = None

    def load_model(self, *_: Any, **__: Any) -> None:
        """Called by vLLM; there is no draft model."""

    def install(
        self,
        runner: Any,
        drafter: "Drafter",
        rows: Rows,
        clock: StepClock | None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start drafting. `runner` is vLLM's model runner; without `clock` every draft is verified whole."""
        self._runner, self._drafter, self.rows, self.clock, self._timer = runner, drafter, rows, clock, timer
        self.calibration = Calibration()
        # By size of the batch, in powers of two: how much faster the drafts of late promised to make a step.
        self._gain = np.full(runner.max_num_reqs.bit_length() + 1, np.inf)
        self._asked: _Asked | None = None
        self._moved = True

    def exchange(self, drafter: "Drafter") -> None:
        """Draft with another pool from the next step on."""
        self._drafter = drafter
        self.rows.restart()

    def follow(self) -> None:
        """Tell the drafter which rows changed hands; done before a batch is verified and before it is drafted for."""
        if self._drafter is None:
            return
        moved, finished = self.rows.sync(self._runner.input_batch, self._runner.requests)
        for left in finished:
            self._drafter.finish(left.row, left.tokens)
        for row in moved:
            self._drafter.start(row.row, row.prompt_length, row.group)
        self._moved |= bool(moved)

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """A draft per row, [] where there is none: called by vLLM with the tokens of the step just done."""
        n = len(sampled_token_ids)
        if self._drafter is None:
            return [[] for _ in range(n)]
        began = self._timer()
        self.follow()
        take_verified = getattr(self._runner.rejection_sampler, "take_verified", None)
        verified = take_verified() if take_verified else None
        step = self.rows.settle(token_ids_cpu, num_tokens_no_spec[:n], verified)
        self._learn(began, step)
        rows = np.flatnonzero(step.goes_on)
        drafts = self._draft(token_ids_cpu, num_tokens_no_spec, rows) if len(rows) else _NOTHING
        kept = np.zeros(n, np.int64)
        kept[rows] = drafts.lengths
        self.rows.draft(kept)
        proposed = _as_lists(drafts, rows, n)
        took = self._timer() - began
        self.totals.proposing_s += took
        self._asked = _Asked(began, len(rows), len(rows) + int(kept.sum()), drafts.probability, took)
        self._moved = False
        return proposed

    def _learn(self, now: float, step: Step) -> None:
        """Take in the step that ended: its time, if it did nothing but decode, and what became of its drafts."""
        totals, asked = self.totals, self._asked
        totals.steps += 1
        totals.row_steps += int(step.decoding.sum())
        totals.drafts += int((step.drafted > 0).sum())
        totals.drafted += int(step.drafted.sum())
        totals.accepted += int(step.accepted.sum())
        if asked is None or self._moved or asked.requests != len(step.decoding) or not step.decoding.all():
            return
        totals.timed_steps += 1
        totals.timed_s += now - asked.began
        totals.timed_tokens += asked.tokens
        totals.timed_proposing_s += asked.proposing_s
        if self.clock is not None:
            self.clock.observe(asked.tokens, now - asked.began)
            emitted = asked.requests + int(step.accepted.sum())
            plain = float(self.clock.times(asked.requests, asked.requests)[0])
            totals.plain_s += plain * emitted / asked.requests
        if asked.probability is not None:
            self.calibration.observe(asked.probability, step.drafted, step.accepted)

    def _draft(self, tokens: NDArray[np.int32], valid: NDArray[np.int32], rows: NDArray[np.int64]) -> "_Cut":
        """Drafts of these rows, cut to what pays."""
        assert self._drafter is not None
        requests, clock = len(rows), self.clock
        limits = np.minimum(self.rows.room(int(rows[-1]) + 1)[rows], self.max_draft_tokens)
        times, explores = None, False
        if clock is not None:
            times = clock.times(requests, requests + int(limits.sum()))
            # Drafts that are believed not to pay are never verified, so the belief would never be tested.
            explores = self.totals.steps % _EXPLORE_EVERY == 0 and not clock.knows(2 * requests)
            if explores:
                times = np.full(min(requests, int(limits.sum())) + 1, times[0])
            limits = np.minimum(limits, affordable(times, requests))
            # Asking costs time too: where drafts have not paid of late, only one step in some tries again.
            unpaid = self._gain[requests.bit_length()] < _WORTH
            if not limits.any() or (unpaid and not explores and self.totals.steps % _PROBE_EVERY):
                return _Cut(None, None, np.zeros(requests, np.int64))
        began = self._timer()
        drafts = self._drafter.propose(tokens, valid, rows.astype(np.int32), limits.astype(np.int32))
        took = self._timer() - began
        self.totals.retrieval_s += took
        if times is None:
            return _Cut(drafts.tokens, drafts.probability, np.count_nonzero(drafts.probability > 0, axis=1))
        probability = self.calibration.apply(drafts.probability)
        kept = lengths(probability, times, requests)
        if not explores:
            rate = expected_rate(probability, kept, times + took, requests)
            self._remember_gain(requests, rate * float(times[0]) / requests)
        return _Cut(drafts.tokens, drafts.probability, kept)

    def _remember_gain(self, requests: int, gain: float) -> None:
        size = requests.bit_length()
        before = self._gain[size]
        self._gain[size] = gain if np.isinf(before) else 0.9 * before + 0.1 * gain


@dataclass(frozen=True)
class _Cut:
    """Drafts [requests, K] with their claimed probabilities, and how many tokens of each to verify [requests]."""

    tokens: NDArray[np.int32] | None
    probability: NDArray[np.float32] | None
    lengths: NDArray[np.int64]


_NOTHING = _Cut(None, None, np.zeros(0, np.int64))


def _as_lists(drafts: _Cut, rows: NDArray[np.int64], n: int) -> list[list[int]]:
    """What vLLM wants: a list of token lists, one per row of the batch."""
    proposed: list[list[int]] = [[] for _ in range(n)]
    if drafts.tokens is not None:
        for row, tokens, length in zip(rows.tolist(), drafts.tokens.tolist(), drafts.lengths.tolist(), strict=True):
            proposed[row] = tokens[:length]
    return proposed
