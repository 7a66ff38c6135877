"""The index of contexts against counting in the texts themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augment.speculation.contexts import MAX_ORDER, begin, build_index, extend

END = -1
BEGIN = -2
UNSEEN = -3

# Few distinct tokens and repeated texts: long shared contexts, which are what sorting can get wrong.
texts = st.lists(st.lists(st.sampled_from([3, 7, 8, 40]), max_size=30), max_size=8)


def occurrences(sequences: list[list[int]], unended: list[bool], context: list[int]) -> list[tuple[int, int]]:
    """Every (text, follower) of `context` in the sequences, by looking everywhere; past the end it is END or UNSEEN."""
    found = []
    for number, sequence in enumerate(sequences):
        padded = [BEGIN, *sequence, UNSEEN if unended[number] else END]
        for end in range(len(context), len(padded)):
            if padded[end - len(context) : end] == context:
                found.append((number, padded[end]))
    return sorted(found)


@given(
    texts,
    st.lists(st.sampled_from([3, 7, 8, 40, 41, 999]), max_size=40),
    st.lists(st.booleans(), min_size=8, max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_intervals_hold_what_follows_each_context(
    sequences: list[list[int]], request: list[int], unended: list[bool]
) -> None:
    marks = np.array(unended[: len(sequences)], np.bool_)
    index = build_index([np.array(sequence, np.int32) for sequence in sequences], unended=marks)
    said = [*index.vocabulary.tolist(), END, UNSEEN]
    low, high = np.zeros(MAX_ORDER + 1, np.int64), np.zeros(MAX_ORDER + 1, np.int64)
    order = begin(index, low, high)
    context = [BEGIN]
    for token in [None, *request]:
        if token is not None:
            order = extend(index, token, order, low, high)
            context.append(token)
        for d in range(1, min(len(context), MAX_ORDER) + 1):
            expected = occurrences(sequences, unended, context[-d:])
            if d > order:
                assert not expected
                continue
            places = range(low[d], high[d])
            followers = [said[f] for f in index.followers[places]]
            assert sorted(zip(index.texts[places].tolist(), followers, strict=True)) == expected


def test_a_pool_of_wide_vocabulary_finds_the_same() -> None:
    rng = np.random.default_rng(1)
    # More than 2**16 distinct tokens, so followers need 32 bits.
    text = np.concatenate([rng.permutation(70_000), [5, 6, 7], [5, 6, 9]]).astype(np.int32)
    index = build_index([text])
    assert index.followers.dtype == np.uint32
    low, high = np.zeros(MAX_ORDER + 1, np.int64), np.zeros(MAX_ORDER + 1, np.int64)
    order = extend(index, 6, extend(index, 5, 0, low, high), low, high)
    assert order == 2
    assert sorted(index.vocabulary[index.followers[low[2] : high[2]]].tolist()) == [7, 9]


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="-4"):
        build_index([np.array([3, -4], np.int32)])
