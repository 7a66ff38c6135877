"""What the pool, recent texts and a request's own text say about its next token, as numbers for `mixing`.

Counts of followers are kept per context length, not blended by a fixed rule: which length, source and text to trust is
learned. All of it is compiled and works on one row at a time; `drafting` holds the rows.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from augment.speculation.contexts import extend

ORDERS = np.array([1, 2, 3, 4, 6, 8, 12, 20], np.int64)
"""Context lengths that are told apart; what matches at length d counts for all of them up to d."""

CANDIDATES = 24
OWN_CANDIDATES = 7
# Followers looked at per prediction, and at least per context length once these are spent. Of a longer interval an even
# sample is taken: it is in the order of contexts, so the sample covers all of them in proportion.
LOOKED_AT = 32
LOOKED_AT_LEAST = 6
OWN_PLACES = 64
# Learned scoring sees only the candidates that a fixed blend puts first.
KEPT = 4
FEATURES = 4 * len(ORDERS) + 4
CONTEXT_FEATURES = 2 * len(ORDERS) + 1

# A text of the pool that shares a rare stretch of this many tokens with the request is likely to share the next one.
SHARED_TOKENS = 3
RARE = 128
# Rows count their tokens, and the likeness of texts, in tables of limited size; what shares a slot is added up.
COUNT_SLOTS = 2048
MAX_TEXT_SLOTS = 16384

BACKOFF = np.float32(2.0)
# How much more a text says of the next token that shares one token more with the context.
_TRUST = (1.5 ** np.minimum(ORDERS, 12)).astype(np.float32)
_TABLE = 4096
_LOG = np.log(np.arange(_TABLE, dtype=np.float32) + np.float32(1.0))
_LOG_SEEN = np.log(np.arange(_TABLE, dtype=np.float32) + np.float32(0.05))
_LOG_ALL = np.log(np.arange(_TABLE, dtype=np.float32) + np.float32(0.5))


class Scratch(NamedTuple):
    """Room for one prediction; nothing in it outlives the next one."""

    candidates: NDArray[np.int32]  # [CANDIDATES] token ids, -1 for the end of a text
    counts: NDArray[np.float32]  # [2, orders, CANDIDATES] pool and own
    totals: NDArray[np.float32]  # [2, orders]
    likeness: NDArray[np.float32]  # [CANDIDATES] weight of the pool's texts that say so
    recency: NDArray[np.float32]  # [CANDIDATES] 1 / rank of the latest place in the own text
    blend: NDArray[np.float32]  # [CANDIDATES]
    kept: NDArray[np.int32]  # [KEPT] token ids, best first by the blend
    base: NDArray[np.float32]  # [KEPT + 1] log of their blended probability, then of all other tokens'
    features: NDArray[np.float32]  # [KEPT, FEATURES]
    context: NDArray[np.float32]  # [CONTEXT_FEATURES]


def text_slots(texts: int) -> int:
    """Size of the table of likeness for a pool of so many texts: a power of two, with room for recent ones."""
    return min(MAX_TEXT_SLOTS, max(256, 1 << (2 * texts).bit_length()))


@njit(cache=True, nogil=True)
def make_scratch():  # type: ignore[no-untyped-def]
    """An empty Scratch."""
    orders = ORDERS.shape[0]
    return Scratch(
        np.empty(CANDIDATES, np.int32),
        np.zeros((2, orders, CANDIDATES), np.float32),
        np.zeros((2, orders), np.float32),
        np.zeros(CANDIDATES, np.float32),
        np.zeros(CANDIDATES, np.float32),
        np.zeros(CANDIDATES, np.float32),
        np.empty(KEPT, np.int32),
        np.zeros(KEPT + 1, np.float32),
        np.zeros((KEPT, FEATURES), np.float32),
        np.zeros(CONTEXT_FEATURES, np.float32),
    )


@njit(cache=True, nogil=True)
def clear(scratch):  # type: ignore[no-untyped-def]
    """Forget the last prediction's counts."""
    scratch.counts[:] = 0
    scratch.totals[:] = 0
    scratch.likeness[:] = 0
    scratch.recency[:] = 0


@njit(cache=True, nogil=True, inline="always")
def _find(candidates, known, token):  # type: ignore[no-untyped-def]
    for c in range(known):
        if candidates[c] == token:
            return c
    return -1


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def collect_own(scratch, tokens, links, place, tail, size):  # type: ignore[no-untyped-def]
    """Number of candidates after counting what followed the context's last token in the row's own `tokens`.

    `tail[:size]` ends with the context (drafted tokens included); `place` is the latest place of its last token in the
    text that has a follower, and `links` leads from there to earlier ones (of any token with the same slot).
    """
    # Arrays are taken out of their tuples once: the compiler would count references at each use in a loop.
    candidates, counts, totals, recency = scratch.candidates, scratch.counts[1], scratch.totals[1], scratch.recency
    known, looked_at, matched = 0, 0, 0
    longest = ORDERS[-1]
    while place >= 0 and looked_at < OWN_PLACES:
        looked_at += 1
        length = 0
        while (
            length < longest and length < size and place >= length and tokens[place - length] == tail[size - 1 - length]
        ):
            length += 1
        if length:
            matched += 1
            token = tokens[place + 1]
            slot = ORDERS.shape[0] - 1
            while ORDERS[slot] > length:
                slot -= 1
            totals[slot] += 1
            c = _find(candidates, known, token)
            if c < 0 and known < OWN_CANDIDATES and (length > 1 or known < 3):
                c = known
                candidates[c] = token
                known += 1
            if c >= 0:
                counts[slot, c] += 1
                if recency[c] == 0:
                    recency[c] = np.float32(1.0) / matched
        place = links[place]
    return known


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def collect_pool(scratch, known, room, index, order, low, high, affinity, offset, skipped):  # type: ignore[no-untyped-def]
    """Number of candidates after counting what followed the context in the texts of `index`.

    Goes from the longest context to the shorter ones and looks at each follower once: at the part of an interval that
    is outside the next longer one's. New candidates are taken while there are fewer than `room`. `affinity` [slots]
    says how like this request each text is (texts count from `offset`); text `skipped` is passed over.
    """
    candidates, counts, totals, likeness = scratch.candidates, scratch.counts[0], scratch.totals[0], scratch.likeness
    texts, followers, vocabulary = index.texts, index.followers, index.vocabulary
    slot = ORDERS.shape[0] - 1
    left = LOOKED_AT
    mask = affinity.shape[0] - 1
    end = vocabulary.shape[0]
    while slot >= 0 and ORDERS[slot] > order:
        slot -= 1
    inner_low, inner_high = low[ORDERS[slot]], low[ORDERS[slot]]
    while slot >= 0:
        d = ORDERS[slot]
        before = inner_low - low[d]
        size = before + high[d] - inner_high
        if size:
            looked_at = min(size, max(left, LOOKED_AT_LEAST))
            left -= looked_at
            weight = np.float32(size) / np.float32(looked_at)
            # In 65536ths of a place: a division per place would cost more than looking there.
            step = (size << 16) // looked_at
            for k in range(looked_at):
                i = (k * step + (step >> 1)) >> 16
                i = low[d] + i if i < before else inner_high + i - before
                # Sharing a token or two says little of which text is like the request, and costs a cache line.
                text = np.int64(texts[i]) if d >= SHARED_TOKENS or skipped >= 0 else np.int64(-1)
                number = followers[i]
                # Past the end: a text that is still being written says nothing of what follows its last token.
                if (text < 0 or text != skipped) and number <= end:
                    token = vocabulary[number] if number < end else -1
                    totals[slot] += weight
                    c = _find(candidates, known, token)
                    if c < 0 and known < room:
                        c = known
                        candidates[c] = token
                        known += 1
                    if c >= 0:
                        counts[slot, c] += weight
                        if d >= SHARED_TOKENS:
                            alike = affinity[(text + offset) & mask] + np.float32(0.02)
                            likeness[c] += weight * _TRUST[slot] * alike * alike
        inner_low, inner_high = low[d], high[d]
        slot -= 1
    return known


@njit(cache=True, nogil=True, inline="always")
def _log(table, count, plus):  # type: ignore[no-untyped-def]
    """log(count + plus) of a count rounded to a whole number, from `table` as far as it goes."""
    whole = int(count + np.float32(0.5))
    return table[whole] if whole < _TABLE else np.log(np.float32(whole) + plus)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def describe(scratch, known, order, seen):  # type: ignore[no-untyped-def]
    """Number of candidates kept, with `kept`, `base`, `features` and `context` of the scratch filled for them.

    The fixed blend is interpolation with a constant back-off mass, from short contexts to long ones, the own text's
    after the pool's at each length. `seen` [COUNT_SLOTS] counts the row's tokens.
    """
    orders = ORDERS.shape[0]
    counts, totals, blend, candidates = scratch.counts, scratch.totals, scratch.blend, scratch.candidates
    context, features, base = scratch.context, scratch.features, scratch.base
    for source in range(2):
        for slot in range(orders - 2, -1, -1):
            totals[source, slot] += totals[source, slot + 1]
            for c in range(known):
                counts[source, slot, c] += counts[source, slot + 1, c]
    blend[:known] = np.float32(1e-4)
    likeness = np.float32(1e-9)
    for c in range(known):
        likeness += scratch.likeness[c]
    for slot in range(orders):
        for source in range(2):
            total = totals[source, slot]
            if total > 0:
                share = np.float32(1.0) / (total + BACKOFF)
                for c in range(known):
                    blend[c] = (counts[source, slot, c] + BACKOFF * blend[c]) * share
    for slot in range(orders):
        for source in range(2):
            context[source * orders + slot] = _log(_LOG, totals[source, slot], np.float32(1.0))
    context[2 * orders] = np.log(np.float32(1.0 + order))
    rest = np.float32(1.0)
    kept = min(known, KEPT)
    for k in range(kept):
        best = 0
        for c in range(1, known):
            ahead = blend[c] - blend[best]
            # Ties go to the smaller token id, whatever the order in which the candidates were met.
            if ahead > 0 or (ahead == 0 and candidates[c] < candidates[best]):
                best = c
        token = candidates[best]
        scratch.kept[k] = token
        base[k] = np.log(blend[best])
        rest -= blend[best]
        blend[best] = -1.0
        for source in range(2):
            for slot in range(orders):
                total, count = totals[source, slot], counts[source, slot, best]
                place = 2 * (source * orders + slot)
                share = np.float32(0.0)
                if total > 0:
                    share = _log(_LOG_SEEN, count, np.float32(0.05)) - _log(_LOG_ALL, total, np.float32(0.5))
                features[k, place] = share
                features[k, place + 1] = _log(_LOG, count, np.float32(1.0))
        features[k, 4 * orders] = base[k]
        features[k, 4 * orders + 1] = np.log(scratch.likeness[best] / likeness + np.float32(0.003))
        features[k, 4 * orders + 2] = np.log(np.float32(1.0) + seen[token & (COUNT_SLOTS - 1)]) if token >= 0 else 0.0
        features[k, 4 * orders + 3] = scratch.recency[best]
    base[KEPT] = np.log(max(rest, np.float32(1e-3)))
    return kept


@njit(cache=True, nogil=True)
def shared_order(index, order, low, high, skipped):  # type: ignore[no-untyped-def]
    """Order of the longest context, up to `order`, that a text other than `skipped` has as well."""
    if skipped < 0:
        return order
    for d in range(order, 0, -1):
        for i in range(low[d], high[d]):
            if index.texts[i] != skipped:
                return d
    return 0


@njit(cache=True, nogil=True)
def recognise(index, order, low, high, affinity, offset, skipped):  # type: ignore[no-untyped-def]
    """Raise the affinity of the texts that share the context's last tokens, the more the fewer they are."""
    mask, texts = affinity.shape[0] - 1, index.texts
    for d in range(SHARED_TOKENS, order + 1):
        size = high[d] - low[d]
        if size <= RARE:
            others = 0
            for i in range(low[d], high[d]):
                others += texts[i] != skipped
            gain = np.float32(1.0) / np.float32(others + 3)
            for i in range(low[d], high[d]):
                if texts[i] != skipped:
                    affinity[(texts[i] + offset) & mask] += gain
            return


@njit(cache=True, nogil=True)
def append_own(tokens, place, heads, links, seen):  # type: ignore[no-untyped-def]
    """Take the token at `place` into the row's own chains and counts; its predecessor now has a follower."""
    if place:
        slot = tokens[place - 1] & (heads.shape[0] - 1)
        links[place - 1] = heads[slot]
        heads[slot] = place - 1
    seen[tokens[place] & (COUNT_SLOTS - 1)] += 1


@njit(cache=True, nogil=True)
def follow_index(index, token, order, low, high, affinity, offset, skipped):  # type: ignore[no-untyped-def]
    """Order of the context after `token` of the real text; texts that share it become more alike."""
    order = extend(index, token, order, low, high)
    recognise(index, order, low, high, affinity, offset, skipped)
    return order
