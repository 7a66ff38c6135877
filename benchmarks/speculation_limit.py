"""How far drafting could get that knows of the next token what our drafter knows.

A step of one drafted sequence ends at the first token that is named wrong, or with the text, however long the draft. If
a share a of N tokens is named right, even drafts without end take N (1 - a) steps, and one more for each text whose
last token is right: 1 / (1 - a) tokens per step at most, whether hits come in runs or not. How much better a name could
be is a matter of entropy: with H bits per token and V tokens to choose from, Fano's inequality bounds the share named
wrong, e, from below by h(e) + e log2(V - 1) >= H, h being the entropy of a coin. Our cross-entropy stands for H, so
that is no bound for a drafter that knows more, only for one to which the texts are as surprising.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from augment.speculation import mixing
from augment.speculation.evidence import KEPT
from augment.speculation.pool import RetrievalPool

if TYPE_CHECKING:
    from speculation_peers import Text


def limit(pool: RetrievalPool, texts: Sequence["Text"]) -> dict[str, float]:
    """Shares of `texts` named right, cross-entropy, and tokens per step of drafts without end.

    `believed_right` is what the drafter expects of `named_right`: they agree where it is calibrated.
    """
    answers = [text.text for text in texts]
    traces = mixing.trace_texts(pool.index, pool.texts, answers, [text.prompt for text in texts], None)
    log_p = mixing.log_probabilities(pool.mixer, traces)
    # Each text's last place is its end, which no draft holds.
    ends = np.cumsum([len(answer) + 1 for answer in answers]) - 1
    within = np.ones(len(log_p), bool)
    within[ends] = False
    right = log_p[:, :KEPT].argmax(1) == traces.label
    steps = np.count_nonzero(~right[within]) + np.count_nonzero(right[ends - 1])
    surprise = -log_p[np.arange(len(log_p)), traces.label]
    tokens = np.concatenate(answers)
    unlisted = traces.label[within] == KEPT
    bits = (surprise[within].sum() - np.log(_frequency(pool, tokens[unlisted])).sum()) / len(tokens) / math.log(2)
    wrong = least_wrong(float(bits), len(pool.index.vocabulary))
    return {
        "named_right": round(float(right[within].mean()), 4),
        "named_right_of_two": round(float(_among_best(log_p, traces.label, 2)[within].mean()), 4),
        "believed_right": round(float(np.exp(log_p[within, :KEPT].max(1)).mean()), 4),
        "unlimited_length": round(len(tokens) / steps, 4),
        "bits_per_token": round(float(bits), 3),
        "fano_named_right": round(1 - wrong, 4),
        "fano_unlimited_length": round(1 / wrong, 2),
    }


def least_wrong(bits: float, choices: int) -> float:
    """The least share of wrong names, to 1e-9, that Fano's inequality allows at `bits` per name of `choices`."""
    low, high = 0.0, 1 - 1 / choices
    while high - low > 1e-9:
        e = (low + high) / 2
        possible = -e * math.log2(e) - (1 - e) * math.log2(1 - e) + e * math.log2(choices - 1)
        low, high = (e, high) if possible < bits else (low, e)
    return high


def _frequency(pool: RetrievalPool, tokens: NDArray[np.int32]) -> NDArray[np.float64]:
    """Share of each of `tokens` in the pool, as if those it lacks had been seen half a time."""
    index = pool.index
    counts = np.bincount(index.followers, minlength=len(index.vocabulary) + 1) + 0.5
    known = tokens < len(index.numbers)
    numbers = np.where(known, index.numbers[np.where(known, tokens, 0)], -1)
    shares: NDArray[np.float64] = np.where(numbers < 0, 0.5, counts[numbers]) / counts.sum()
    return shares


def _among_best(log_p: NDArray[np.float32], label: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Whether the true token is one of the `n` likeliest kept candidates, of each place."""
    best = np.argsort(-log_p[:, :KEPT], axis=1, kind="stable")[:, :n]
    found: NDArray[np.bool_] = (best == label[:, None]).any(1)
    return found
