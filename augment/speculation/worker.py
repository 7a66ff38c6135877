"""What the engine asks of vLLM's workers: to install speculation, to exchange the pool, to hand over counts.

vLLM adds this class to its own worker's bases (`worker_extension_cls`), and `collective_rpc` calls its methods by name
in every worker. Nothing of vLLM is replaced but the model runner's rejection sampler, and that only for `relaxed`.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from augment.speculation.config import SpeculationConfig
from augment.speculation.drafting import Drafter, DraftingConfig
from augment.speculation.pool import RetrievalPool
from augment.speculation.proposer import PoolProposer
from augment.speculation.rows import Rows
from augment.speculation.sampler import RelaxedSampler
from augment.speculation.steptime import StepClock, measure
from augment.speculation.verification import Relaxation, exact_bits

# Steps of more tokens than this are extrapolated: by then time grows in a straight line on any device.
_MOST_MEASURED = 512

# Enough steps for an index of recent texts to be made and put into use.
_STEPS_TO_COMPILE = 4


class SpeculationWorker:
    """Methods that vLLM's worker gains. Their names must not be taken by it."""

    if TYPE_CHECKING:
        model_runner: Any

        def synchronize_device(self) -> None: ...

    def speculation_install(
        self,
        config: dict[str, Any],
        pool: str | None,
        classes: bytes | None,
        odd_marks: bytes | None,
    ) -> dict[str, Any]:
        """Install drafting and verification; the measured step times, in JSON's types.

        `config` are the fields of a SpeculationConfig, `pool` a saved pool (its identity has been checked) or None,
        `classes` and `odd_marks` what `token_classes` gives, where `exact` needs them.
        """
        wanted = SpeculationConfig.model_validate(config)
        runner = self.model_runner
        proposer = getattr(runner, "drafter", None)
        if not isinstance(proposer, PoolProposer):
            # Without the last stage of a pipeline there is nothing to sample and nothing to draft.
            return {}
        vocabulary = runner.model_config.get_vocab_size()
        marks = None if odd_marks is None else np.frombuffer(odd_marks, bool).copy()
        # vLLM 0.32 cannot verify drafts of sampled texts on a CPU (see `augment.engine.launch`).
        greedy_only = runner.device.type == "cpu"
        rows = Rows(runner.max_num_reqs, runner.max_model_len, vocabulary, marks, greedy_only)
        loaded = None if pool is None else RetrievalPool.load(Path(pool))
        clock = None
        seconds: dict[int, float] = {}
        if wanted.budget == "measured":
            table = measure(self._speculation_forward, min(_MOST_MEASURED, runner.max_num_tokens))
            clock = StepClock(table, most=runner.max_num_reqs * (1 + wanted.max_draft_tokens))
            seconds = dict(zip(table.tokens, table.seconds, strict=True))
        proposer.install(runner, _drafter(wanted, loaded, runner), rows, clock)
        if wanted.mode == "relaxed":
            rule = Relaxation(
                k=wanted.k,
                p=wanted.p,
                keep_end=wanted.keep_end,
                stop=torch.zeros(vocabulary, dtype=torch.bool, device=runner.device),
                classes=None if classes is None else torch.tensor(bytearray(classes)).to(runner.device),
                exact=exact_bits(wanted.exact),
            )
            runner.rejection_sampler = RelaxedSampler(
                runner, rule, rows, proposer.follow, wanted.max_relaxed_per_text, marks
            )
        # vLLM fills a whole batch with worthless drafts once one of its texts nears the model's context, unless drafts
        # may reach past it; ours never do.
        runner.effective_drafter_max_model_len = runner.max_model_len + proposer.max_draft_tokens
        self._speculation = wanted
        return {"step_seconds": {str(n): s for n, s in seconds.items()}}

    def speculation_exchange(self, pool: str) -> None:
        """Draft from another saved pool from now on."""
        proposer = getattr(self.model_runner, "drafter", None)
        if isinstance(proposer, PoolProposer):
            loaded = RetrievalPool.load(Path(pool))
            proposer.exchange(_drafter(self._speculation, loaded, self.model_runner))

    def speculation_counts(self, ids: Iterable[str]) -> dict[str, list[int]]:
        """Drafted, accepted, relaxed and steps of the texts of these requests; each can be asked for once."""
        proposer = getattr(self.model_runner, "drafter", None)
        if not isinstance(proposer, PoolProposer):
            return {}
        return {
            name: [counts.drafted, counts.accepted, counts.relaxed, counts.steps]
            for name, counts in proposer.rows.take(ids).items()
        }

    def speculation_totals(self) -> dict[str, float]:
        """The proposer's totals, and the overhead and scale of its step times."""
        proposer = getattr(self.model_runner, "drafter", None)
        if not isinstance(proposer, PoolProposer):
            return {}
        totals = asdict(proposer.totals)
        if proposer.clock is not None:
            totals |= {"step_overhead_s": proposer.clock.overhead, "step_scale": proposer.clock.scale}
        return totals

    def _speculation_forward(self, tokens: int) -> float:
        """Seconds of the model's forward pass over `tokens` tokens and their scores, on an idle engine."""
        runner = self.model_runner
        self.synchronize_device()
        began = time.perf_counter()
        with torch.inference_mode():
            hidden, _ = runner._dummy_run(tokens, skip_eplb=True)
            runner.model.compute_logits(hidden[:tokens]).argmax(dim=-1)
        self.synchronize_device()
        return time.perf_counter() - began


def _drafter(config: SpeculationConfig, pool: RetrievalPool | None, runner: Any) -> Drafter:
    drafting = DraftingConfig(
        max_draft_tokens=config.max_draft_tokens, min_probability=config.min_probability, frozen=config.frozen_pool
    )
    _compile(pool, drafting)
    return Drafter(pool, drafting, runner.max_num_reqs, runner.max_model_len)


def _compile(pool: RetrievalPool | None, drafting: DraftingConfig) -> None:
    """Draft, finish and draft again with a drafter that is thrown away: compiling takes seconds the first time on a
    machine, and the first steps of a run are no place for it."""
    drafter = Drafter(pool, drafting, 1, 256)
    tokens, row = np.zeros((1, 256), np.int32), np.zeros(1, np.int32)
    for _ in range(2):
        drafter.start(0, 4)
        for step in range(1, 1 + _STEPS_TO_COMPILE):
            drafter.propose(tokens, np.full(1, 60 * step, np.int32), row, row + 2)
        drafter.finish(0, tokens[0])
