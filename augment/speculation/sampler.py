"""Relaxed verification inside vLLM: a rejection sampler that lets through what DARE's rule accepts.

vLLM compares each draft token with the argmax of its scores. Raising the score of a draft token that passes above all
others before that comparison is the relaxed rule exactly, with vLLM's own kernels on every device.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import GREEDY_TEMPERATURE, RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from augment.speculation.rows import Rows, Verified
from augment.speculation.verification import QUOTES, Relaxation, inside_quotes, passes_relaxed, within_cap


class RelaxedSampler(RejectionSampler):  # type: ignore[misc]
    """vLLM's rejection sampler with relaxed verification of greedy requests.

    `follow` brings `rows` up to the batch that is being verified; `most` caps the relaxed tokens of a text.
    """

    def __init__(
        self,
        runner: Any,
        rule: Relaxation,
        rows: Rows,
        follow: Callable[[], None],
        most: int | None,
        odd_marks: NDArray[np.bool_] | None,
    ) -> None:
        super().__init__(runner.sampler, runner.speculative_config, runner.device)
        self._rule, self._rows, self._follow, self._most = rule, rows, follow, most
        self._odd_marks = None if odd_marks is None else torch.from_numpy(odd_marks).to(runner.device)
        self._verified: tuple[Tensor, list[int]] | None = None

    def take_verified(self) -> Verified | None:
        """What passed by relaxation since the last call; None where no draft was verified."""
        if self._verified is None:
            return None
        relaxed, drafted = self._verified
        self._verified = None
        return Verified(relaxed.cpu().numpy(), np.asarray(drafted, np.int64))

    def apply_logits_processors(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, metadata: SpecDecodeMetadata
    ) -> Tensor:
        """Scores [n, V] of all draft places after vLLM's processors, the relaxed tokens' raised above all others."""
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        self._follow()
        # Stop tokens come with the requests.
        self._rule.stop.copy_(torch.from_numpy(self._rows.is_stop))
        drafted = torch.tensor(metadata.num_draft_tokens, device=logits.device)
        row = torch.arange(len(drafted), device=logits.device).repeat_interleave(drafted)
        first, relaxed = passes_relaxed(logits, metadata.draft_token_ids, self._rule, self._in_quotes(metadata, row))
        if not sampling_metadata.all_greedy:
            relaxed &= (sampling_metadata.temperature == GREEDY_TEMPERATURE.value)[row]
        if self._most is not None:
            left = torch.from_numpy(np.maximum(self._most - self._rows.relaxed[: len(drafted)], 0))
            relaxed = within_cap(relaxed, row, left.to(logits.device))
        at = relaxed.nonzero().squeeze(-1)
        logits[at, metadata.draft_token_ids[at].long()] = logits[at, first[at]] + 1
        self._verified = relaxed, list(metadata.num_draft_tokens)
        return logits

    def _in_quotes(self, metadata: SpecDecodeMetadata, row: Tensor) -> Tensor | None:
        if not self._rule.exact & QUOTES or self._odd_marks is None:
            return None
        before = torch.from_numpy(self._rows.in_quotes[: len(metadata.num_draft_tokens)]).to(row.device)
        return inside_quotes(self._odd_marks[metadata.draft_token_ids.long().clamp(min=0)], row, before)
