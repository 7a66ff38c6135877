"""Which draft tokens pass: the model's first choice always, others by DARE's relaxed rule and its guards.

With target scores s at a draft's place, P = softmax(s), draft token d passes if d = argmax s, or if d is among the k
first of s and P(d) > p (LASER/DARE, retrieval-based speculative decoding with relaxed verification). Verification of a
draft ends at the first token that does not pass; the argmax stands in its place.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Bits of a token's class, as `token_classes` gives them.
DIGITS, QUOTES, JSON = 1, 2, 4
_BITS = {"digits": DIGITS, "quotes": QUOTES, "json": JSON}
_MARKS = frozenset('"“”„«»')
_SYNTAX = frozenset('{}[]":,')


@dataclass(frozen=True)
class Relaxation:
    """The relaxed rule and its guards, ready for tensors of one device.

    `stop` [V] marks tokens that end a text. `classes` [V] holds the bits of each token's class (uint8), or is None;
    `exact` the bits that are never relaxed.
    """

    k: int
    p: float
    keep_end: bool
    stop: Tensor
    classes: Tensor | None = None
    exact: int = 0


def passes_relaxed(
    scores: Tensor, draft: Tensor, rule: Relaxation, in_quotes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The argmax of every place, shape [n], and whether the draft token there passes only thanks to relaxation, [n].

    Shapes: scores [n, V] float32, after all logits processors; draft [n], -1 for vLLM's padding, which never passes;
    in_quotes [n], whether the place is between quotation marks. A token that ends a text passes as argmax only: the
    authors' drafts hold none.
    """
    first = scores.argmax(dim=-1)
    relaxed = torch.zeros_like(first, dtype=torch.bool)
    token = draft.long()
    open_ = (token != first) & (token >= 0)
    open_ &= ~rule.stop[token.clamp(min=0)]
    if rule.keep_end:
        open_ &= ~rule.stop[first]
    if rule.exact and rule.classes is not None:
        either = rule.classes[token.clamp(min=0)] | rule.classes[first]
        open_ &= (either & rule.exact) == 0
        if rule.exact & QUOTES and in_quotes is not None:
            open_ &= ~in_quotes
    places = open_.nonzero().squeeze(-1)
    if rule.k > 1 and len(places):
        chosen = scores[places]
        own = chosen.gather(1, token[places, None])
        rank = (chosen > own).sum(dim=-1)
        probability = (own.squeeze(-1) - chosen.logsumexp(dim=-1)).exp()
        relaxed[places] = (rank < rule.k) & (probability > rule.p)
    return first, relaxed


def within_cap(relaxed: Tensor, row: Tensor, left: Tensor) -> Tensor:
    """`relaxed` [n] without those past each text's cap; `row` [n] ascending, `left` [rows] how many a text may have.

    Exact for every token that is reached: to be reached, all relaxed ones before it in its row must have passed.
    """
    until = relaxed.long().cumsum(0)
    before = torch.zeros(len(left), dtype=torch.long, device=relaxed.device)
    before.scatter_reduce_(0, row, until - relaxed.long(), "amin", include_self=False)
    return relaxed & (until - before[row] <= left[row])


def inside_quotes(marks: Tensor, row: Tensor, open_before: Tensor) -> Tensor:
    """Whether each draft place is between quotation marks, shape [n].

    `marks` [n] says which draft tokens hold an odd number of quotation marks, `row` [n] (ascending) whose draft they
    are of, `open_before` [rows] whether a quotation is open where the draft begins.
    """
    until = marks.long().cumsum(0) - marks.long()
    start = torch.zeros(len(open_before), dtype=torch.long, device=marks.device)
    start.scatter_reduce_(0, row, until, "amin", include_self=False)
    return ((until - start[row]) % 2 == 1) ^ open_before[row]


def exact_bits(classes: Iterable[str]) -> int:
    """The bits of the named classes together."""
    bits = 0
    for name in classes:
        bits |= _BITS[name]
    return bits


def token_classes(tokenizer: Any, vocabulary: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Class bits of every token of a Hugging Face tokenizer, and whether it holds an odd number of quotation marks."""
    classes = np.zeros(vocabulary, np.uint8)
    odd = np.zeros(vocabulary, bool)
    known = min(vocabulary, len(tokenizer))
    for token, text in enumerate(tokenizer.batch_decode([[t] for t in range(known)])):
        marks = sum(c in _MARKS for c in text)
        odd[token] = marks % 2 == 1
        classes[token] = (
            DIGITS * any(c.isdigit() for c in text) | QUOTES * (marks > 0) | JSON * any(c in _SYNTAX for c in text)
        )
    return classes, odd
