"""Texts indexed by what stands before each token, so that all match lengths of a context are one walk.

Every place of every text is sorted by its context read backwards (the token there, the one before it, ...), as in a
suffix array of the reversed texts. The places whose context ends in the same d tokens are then one interval [low,
high), the intervals for d = 1, 2, ... are nested, and `followers[low:high]` is what came next. Appending a token c maps
an interval to the one of the longer context by two binary searches in the list of places that c follows (the backward
search of an FM-index, Ferragina and Manzini 2000). Only followers, these lists and 16 bits of the text's number are
kept: 8 bytes a token with up to 65,535 distinct tokens, 10 beyond; the texts themselves are not needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_ORDER = 20
"""Longest context that is told from a longer one, in tokens; the beginning of a text counts as a token."""


TEXT_MASK = 2**16 - 1
"""Texts are only told apart to say which are like a request: for that, sharing a number with one in 65,536 is fine."""


class ContextIndex(NamedTuple):
    """The sorted contexts of some texts; n places: one per token and one per beginning of a text.

    Tokens are renumbered 0..v-1 in ascending order; v stands for the beginning, and for the end, of a text. All arrays
    are read-only, so that a memory map and an array of our own are the same type to the compiler.
    """

    # [n] the token after each context, in the order of contexts; v at the end, v + 1 where a text goes on unseen
    followers: NDArray[np.unsignedinteger]
    places: NDArray[np.uint32]  # [n - texts] per token, ascending: the contexts that it follows
    starts: NDArray[
        np.int64
    ]  # [v + 1] where the contexts that end in each token start; `places` is offset by starts[0]
    texts: NDArray[np.uint16]  # [n] the text of each context, its number modulo TEXT_MASK + 1
    vocabulary: NDArray[np.int32]  # [v] token ids, ascending
    numbers: NDArray[np.int32]  # token id -> 0..v-1, or -1; as long as the largest id needs


def build_index(
    sequences: Sequence[NDArray[np.int32]],
    like: ContextIndex | None = None,
    unended: NDArray[np.bool_] | None = None,
) -> ContextIndex:
    """The index of `sequences`, its followers at least as wide as those of `like`, for which code may be compiled.

    `unended` [texts] marks texts that are still being written: nothing is known of what follows their last token.
    Raises ValueError for a negative token id and for 2**31 tokens and more.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    tokens = np.concatenate([*sequences, np.zeros(0, np.int32)]).astype(np.int32, copy=False)
    if len(tokens) and tokens.min() < 0:
        raise ValueError(f"Token ids are not negative; there is {tokens.min()}.")
    n = len(tokens) + len(lengths)
    if n >= 2**31:
        raise ValueError(f"A pool holds fewer than 2**31 tokens; these texts have {n}. Split it by group.")
    vocabulary = np.unique(tokens).astype(np.int32)
    numbers = number_tokens(vocabulary)
    v = len(vocabulary)
    stream = np.empty(n, np.int32)
    begins = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]]).astype(np.int64) if len(lengths) else np.zeros(0, int)
    is_token = np.ones(n, np.bool_)
    is_token[begins] = False
    stream[begins] = v
    stream[is_token] = numbers[tokens]
    order, starts = _sort_contexts(stream, v)
    wide = v + (unended is not None) >= 2**16 or (like is not None and like.followers.itemsize == 4)
    followers: NDArray[np.unsignedinteger] = np.empty(n, np.uint32) if wide else np.empty(n, np.uint16)
    places = np.empty(len(tokens), np.uint32)
    _list_followers(stream, order, starts, v, followers, places)
    if unended is not None:
        followers[np.isin(order, (begins + lengths)[unended])] = v + 1
    texts = ((np.cumsum(~is_token, dtype=np.int32) - 1) & TEXT_MASK).astype(np.uint16)[order]
    for array in (followers, places, starts, texts, vocabulary, numbers):
        array.flags.writeable = False
    return ContextIndex(followers, places, starts, texts, vocabulary, numbers)


def number_tokens(vocabulary: NDArray[np.int32]) -> NDArray[np.int32]:
    """The inverse of `vocabulary`: token id -> its place there, -1 for ids between."""
    numbers = np.full(int(vocabulary[-1]) + 1 if len(vocabulary) else 0, -1, np.int32)
    numbers[vocabulary] = np.arange(len(vocabulary), dtype=np.int32)
    return numbers


@njit(cache=True, nogil=True)
def _sort_contexts(stream, v):  # type: ignore[no-untyped-def]
    """Places of `stream` by context read backwards, and where each token's contexts start [v + 1].

    Prefix doubling (Manber and Myers 1993) on ranks: contexts of up to k tokens sorted give those of 2k by one pass
    of counting. Beginnings are told apart by place, so that contexts never reach into the text before.
    """
    n = stream.shape[0]
    starts = np.zeros(v + 1, np.int64)
    for place in range(n):
        starts[stream[place]] += 1
    total = starts[v]
    for token in range(v):
        total, starts[token] = total + starts[token], total
    starts[v] = total
    rank = np.empty(n, np.int32)
    order = np.empty(n, np.int32)
    free = starts.copy()
    beginnings = 0
    for place in range(n):
        token = stream[place]
        if token == v:
            order[beginnings] = place
            rank[place] = beginnings
            beginnings += 1
        else:
            order[free[token]] = place
            rank[place] = starts[token]
            free[token] += 1
    longer = np.empty(n, np.int32)
    other = np.empty(n, np.int32)
    known = 1
    unsure = True
    while unsure:
        for i in range(n):
            other[i] = i
        # In the order of what stands `known` tokens before, each place takes the next free slot of its class.
        for i in range(n):
            place = order[i] + known
            if place < n:
                slot = rank[place]
                longer[other[slot]] = place
                other[slot] += 1
        # So early in the stream, a context of `known` tokens holds the first beginning, and is the only one such.
        for place in range(min(known, n)):
            longer[rank[place]] = place
        unsure = False
        head = 0
        for i in range(n):
            place = longer[i]
            if i:
                last = longer[i - 1]
                same = rank[place] == rank[last] and min(place, last) >= known
                if same and rank[place - known] == rank[last - known]:
                    unsure = True
                else:
                    head = i
            other[place] = head
        rank, other = other, rank
        order, longer = longer, order
        known *= 2
    return order, starts


@njit(cache=True, nogil=True)
def _list_followers(stream, order, starts, v, followers, places):  # type: ignore[no-untyped-def]
    """Fill `followers` [n] and `places` [n - texts]."""
    n = stream.shape[0]
    free = starts.copy()
    for i in range(n):
        after = order[i] + 1
        token = stream[after] if after < n else v
        followers[i] = token
        if token != v:
            places[free[token] - starts[0]] = i
            free[token] += 1


@njit(cache=True, nogil=True, inline="always")
def _lower_bound(places, low, high, rank):  # type: ignore[no-untyped-def]
    while low < high:
        middle = (low + high) >> 1
        if places[middle] < rank:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def begin(index, low, high):  # type: ignore[no-untyped-def]
    """Order of the context "beginning of a text", after writing its interval to `low` and `high` [MAX_ORDER + 1]."""
    low[1] = 0
    high[1] = index.starts[0]
    return 1 if index.starts[0] > 0 else 0


@njit(cache=True, nogil=True)
def extend(index, token, order, low, high):  # type: ignore[no-untyped-def]
    """Order of the longest known context after `token`; intervals of orders 1..order in `low`, `high` become its own.

    The intervals are nested, so each search stays within the one before. 0: no text holds this token.
    """
    if token < 0 or token >= index.numbers.shape[0]:
        return 0
    number = index.numbers[token]
    if number < 0:
        return 0
    places, offset = index.places, index.starts[0]
    left, right = index.starts[number] - offset, index.starts[number + 1] - offset
    before_low, before_high = low[1], high[1]
    low[1], high[1] = left + offset, right + offset
    found = 1
    for d in range(1, min(order, MAX_ORDER - 1) + 1):
        left = _lower_bound(places, left, right, before_low)
        right = _lower_bound(places, left, right, before_high)
        if left == right:
            break
        before_low, before_high = low[d + 1], high[d + 1]
        low[d + 1], high[d + 1] = left + offset, right + offset
        found = d + 1
    return found
