"""Learned mixing: which match length, source and text to trust for the next token.

Hand-made blends of n-gram orders (Katz, Kneser-Ney, PPM) fix how orders back off. Here, as in the context-mixing
compressors (Mahoney 2005), a small network is fitted instead: it corrects the log-probability of a fixed blend for each
candidate, given that candidate's counts at each length in the pool and in the request's own text. What it gives is a
calibrated probability, so a draft can be cut where it stops paying. It is fitted when a pool is built, on the pool's
own texts, each seen as if it were not in the pool.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from augment.speculation import evidence
from augment.speculation.contexts import MAX_ORDER, TEXT_MASK, ContextIndex, begin
from augment.speculation.evidence import CANDIDATES, CONTEXT_FEATURES, FEATURES, KEPT

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = 8
# Fitting takes its time from a nightly run; beyond this many places more texts were not measured to help.
FITTED_PLACES = 120_000
# Fewer say too little: the blend stands as it is.
FITTED_PLACES_LEAST = 4_000
EPOCHS = 4
_BATCH = 512
_RATE = 4e-3


class Mixer(NamedTuple):
    """The network's weights, float32; all zero gives the fixed blend.

    Candidate: log blend + features @ direct + relu(features @ inner + context @ outer + bias) @ read.
    Everything else: log rest + context @ rest + relu(context @ rest_inner + rest_bias) @ rest_read + rest_offset.
    """

    direct: NDArray[np.float32]  # [FEATURES]
    inner: NDArray[np.float32]  # [FEATURES, HIDDEN]
    outer: NDArray[np.float32]  # [CONTEXT_FEATURES, HIDDEN]
    bias: NDArray[np.float32]  # [HIDDEN]
    read: NDArray[np.float32]  # [HIDDEN]
    rest: NDArray[np.float32]  # [CONTEXT_FEATURES]
    rest_inner: NDArray[np.float32]  # [CONTEXT_FEATURES, HIDDEN]
    rest_bias: NDArray[np.float32]  # [HIDDEN]
    rest_read: NDArray[np.float32]  # [HIDDEN]
    rest_offset: NDArray[np.float32]  # [1]


SHAPES: dict[str, tuple[int, ...]] = {
    "direct": (FEATURES,),
    "inner": (FEATURES, HIDDEN),
    "outer": (CONTEXT_FEATURES, HIDDEN),
    "bias": (HIDDEN,),
    "read": (HIDDEN,),
    "rest": (CONTEXT_FEATURES,),
    "rest_inner": (CONTEXT_FEATURES, HIDDEN),
    "rest_bias": (HIDDEN,),
    "rest_read": (HIDDEN,),
    "rest_offset": (1,),
}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())


def unpack(flat: NDArray[np.float32]) -> Mixer:
    """The Mixer whose weights stand one after another in `flat` [SIZE], as read-only views."""
    flat.flags.writeable = False
    parts, at = {}, 0
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        parts[name] = flat[at : at + size].reshape(shape)
        at += size
    return Mixer(**parts)


def pack(mixer: Mixer) -> NDArray[np.float32]:
    """All weights in one array [SIZE]."""
    return np.concatenate([part.ravel() for part in mixer])


def unfitted() -> Mixer:
    """The Mixer that leaves the fixed blend as it is."""
    return unpack(np.zeros(SIZE, np.float32))


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def most_likely(scratch, kept, mixer, room):  # type: ignore[no-untyped-def]
    """The likeliest of the kept candidates and its probability; -1 and 0 if none was kept.

    `room` [3, HIDDEN] is to work in.
    """
    if kept == 0:
        return np.int32(-1), np.float32(0.0)
    features, context, base = scratch.features, scratch.context, scratch.base
    direct, inner, outer, read = mixer.direct, mixer.inner, mixer.outer, mixer.read
    rest, rest_inner, rest_read = mixer.rest, mixer.rest_inner, mixer.rest_read
    shared, others, own = room[0], room[1], room[2]
    for h in range(HIDDEN):
        shared[h] = mixer.bias[h]
        others[h] = mixer.rest_bias[h]
    score = base[KEPT] + mixer.rest_offset[0]
    for f in range(CONTEXT_FEATURES):
        x = context[f]
        if x != 0:
            score += x * rest[f]
            for h in range(HIDDEN):
                shared[h] += x * outer[f, h]
            for h in range(HIDDEN):
                others[h] += x * rest_inner[f, h]
    for h in range(HIDDEN):
        score += max(others[h], np.float32(0.0)) * rest_read[h]
    # The sum of exp(score - highest so far), rescaled whenever a higher one comes.
    highest, total = score, np.float32(1.0)
    best, best_score = 0, np.float32(-np.inf)
    for k in range(kept):
        score = base[k]
        for h in range(HIDDEN):
            own[h] = shared[h]
        # Most features are 0: lengths at which nothing matched.
        for f in range(FEATURES):
            x = features[k, f]
            if x != 0:
                score += x * direct[f]
                for h in range(HIDDEN):
                    own[h] += x * inner[f, h]
        for h in range(HIDDEN):
            score += max(own[h], np.float32(0.0)) * read[h]
        if score > best_score:
            best, best_score = k, score
        if score > highest:
            total = total * np.exp(highest - score) + np.float32(1.0)
            highest = score
        else:
            total += np.exp(score - highest)
    return scratch.kept[best], np.exp(best_score - highest) / total


class Traces(NamedTuple):
    """What `describe` says before each token of some texts, and before their ends, n places in all."""

    features: NDArray[np.float32]  # [n, KEPT, FEATURES]
    context: NDArray[np.float32]  # [n, CONTEXT_FEATURES]
    base: NDArray[np.float32]  # [n, KEPT + 1]
    label: NDArray[np.int64]  # [n] the true token's place among the kept candidates, KEPT where it is none of them


@njit(cache=True, nogil=True)
def _trace(index, tokens, prompt_length, text, slots, features, context, base, label):  # type: ignore[no-untyped-def]
    """Write what `describe` says before each token of a text of the pool, and before its end, leaving that text out.

    `tokens` is prompt and text; rows [length + 1, ...] are written. `label` is the true token's place among the kept
    candidates, KEPT where it is none of them.
    """
    scratch = evidence.make_scratch()
    low, high = np.zeros(MAX_ORDER + 1, np.int64), np.zeros(MAX_ORDER + 1, np.int64)
    affinity = np.zeros(slots, np.float32)
    heads = np.full(evidence.COUNT_SLOTS, -1, np.int32)
    links = np.full(tokens.shape[0] + 1, -1, np.int32)
    seen = np.zeros(evidence.COUNT_SLOTS, np.uint16)
    order = begin(index, low, high)
    for place in range(prompt_length):
        evidence.append_own(tokens, place, heads, links, seen)
    for place in range(prompt_length, tokens.shape[0] + 1):
        evidence.clear(scratch)
        known = 0
        if place:
            head = heads[tokens[place - 1] & (evidence.COUNT_SLOTS - 1)]
            known = evidence.collect_own(scratch, tokens, links, head, tokens[:place], place)
        known = evidence.collect_pool(scratch, known, CANDIDATES, index, order, low, high, affinity, 0, text)
        shared = evidence.shared_order(index, order, low, high, text)
        kept = evidence.describe(scratch, known, shared, seen)
        truth = tokens[place] if place < tokens.shape[0] else -1
        row = place - prompt_length
        label[row] = KEPT
        for k in range(kept):
            if scratch.kept[k] == truth:
                label[row] = k
        features[row, :kept] = scratch.features[:kept]
        context[row] = scratch.context
        base[row, :kept] = scratch.base[:kept]
        base[row, kept:KEPT] = -np.inf
        base[row, KEPT] = scratch.base[KEPT]
        if place < tokens.shape[0]:
            evidence.append_own(tokens, place, heads, links, seen)
            order = evidence.follow_index(index, truth, order, low, high, affinity, 0, text)


def fit(
    index: ContextIndex,
    texts: Sequence[NDArray[np.int32]],
    prompts: Sequence[NDArray[np.int32]] | None,
    seed: int = 0,
) -> Mixer:
    """A Mixer fitted on a spread of `texts` (those of `index`, in its order), each left out of the counts it sees.

    `prompts`, where known, stand before their texts: drafts copy titles from them. Cross-entropy by Adam, on one
    thread: the same texts and seed give the same weights.
    """
    places = sum(len(text) + 1 for text in texts)
    if places < FITTED_PLACES_LEAST:
        return unfitted()
    chosen = range(0, len(texts), max(1, -(-places // FITTED_PLACES)))
    asked = None if prompts is None else [prompts[t] for t in chosen]
    return _fit_network(trace_texts(index, len(texts), [texts[t] for t in chosen], asked, chosen), seed)


def trace_texts(
    index: ContextIndex,
    pool_texts: int,
    texts: Sequence[NDArray[np.int32]],
    prompts: Sequence[NDArray[np.int32]] | None,
    numbers: Sequence[int] | None,
) -> Traces:
    """What an `index` of `pool_texts` texts says of `texts`, each at its true context.

    `numbers` are those of the texts in the index, each left out of the counts it sees; None: none is in it.
    """
    rows = sum(len(text) + 1 for text in texts)
    traces = Traces(
        np.zeros((rows, KEPT, FEATURES), np.float32),
        np.zeros((rows, CONTEXT_FEATURES), np.float32),
        np.zeros((rows, KEPT + 1), np.float32),
        np.zeros(rows, np.int64),
    )
    slots = evidence.text_slots(pool_texts)
    at = 0
    for t, text in enumerate(texts):
        prompt = np.zeros(0, np.int32) if prompts is None else prompts[t]
        end = at + len(text) + 1
        skipped = -1 if numbers is None else numbers[t] & TEXT_MASK
        _trace(index, np.concatenate([prompt, text]), len(prompt), skipped, slots, *(part[at:end] for part in traces))
        at = end
    return traces


def log_probabilities(mixer: Mixer, traces: Traces) -> NDArray[np.float32]:
    """Log-probabilities of the kept candidates at each place, and of all other tokens together, [n, KEPT + 1]."""
    import torch

    weights = {name: torch.tensor(part) for name, part in mixer._asdict().items()}
    features, context, base = (torch.from_numpy(array) for array in traces[:3])
    found: NDArray[np.float32] = torch.log_softmax(_scores(weights, features, context, base), 1).numpy()
    return found


def _scores(w: Mapping[str, "Tensor"], features: "Tensor", context: "Tensor", base: "Tensor") -> "Tensor":
    """The formula of `Mixer` for n places, [n, KEPT + 1]."""
    import torch

    inner = (features @ w["inner"] + (context @ w["outer"] + w["bias"])[:, None, :]).relu()
    own = features @ w["direct"] + inner @ w["read"]
    others = (context @ w["rest_inner"] + w["rest_bias"]).relu() @ w["rest_read"]
    rest = context @ w["rest"] + others + w["rest_offset"]
    return base + torch.cat([own, rest[:, None]], 1)


def _fit_network(traces: Traces, seed: int) -> Mixer:
    # A second to import, and only a build needs it.
    import torch
    from torch.nn.functional import cross_entropy

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    w = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for name in ("inner", "outer", "rest_inner"):
        # Uniform within 1/sqrt(inputs), as torch's own linear layers start; the layers that read these start at zero.
        bound = SHAPES[name][0] ** -0.5
        w[name] = (torch.rand(SHAPES[name], generator=generator) * 2 - 1) * bound
    for weight in w.values():
        weight.requires_grad_()
    optimizer = torch.optim.Adam(list(w.values()), lr=_RATE)
    x, c, b, y = (torch.from_numpy(array) for array in traces)
    steps = EPOCHS * -(-len(y) // _BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: max(0.02, 1 - done / steps))
    for _ in range(EPOCHS):
        shuffled = torch.randperm(len(y), generator=generator)
        for at in range(0, len(y), _BATCH):
            rows = shuffled[at : at + _BATCH]
            loss = cross_entropy(_scores(w, x[rows], c[rows], b[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    return unpack(np.concatenate([weight.detach().numpy().ravel() for weight in w.values()]))
