"""Which texts a row may use, against a list per row."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.texts import DAY_US, TextTensors, UserTexts

Rows = list[list[tuple[int | None, int | None, float]]]


def listed(texts: UserTexts) -> Rows:
    """Per row its partitions, each as (number in the summary's vector, number in the shift's, age in days)."""
    rows: Rows = []
    for first, last, at in zip(texts.first, texts.last, texts.at, strict=True):
        row = []
        for j in range(first, last):
            said = [int(texts.vectors[t][0]) if t >= 0 else None for t in (texts.summary[j], texts.shift[j])]
            row.append((said[0], said[1], float(at - texts.sealed[j]) / DAY_US))
        rows.append(row)
    return rows


def gathered(texts: UserTexts, rows: np.ndarray) -> Rows:
    found = TextTensors(texts, torch.as_tensor, "cpu").gather(torch.from_numpy(rows))
    result: Rows = []
    for b in range(len(rows)):
        row = []
        for p in range(found.summary.shape[1]):
            summary = int(found.summary[b, p, 0]) if found.has_summary[b, p] else None
            shift = int(found.shift[b, p, 0]) if found.shift is not None and found.has_shift[b, p] else None
            row.append((summary, shift, float(found.age_days[b, p])))
        result.append(row)
    return result


@st.composite
def some_texts(draw: st.DrawFn, start: int = 0) -> UserTexts:
    """Up to three users with up to four partitions; vector n holds the number start + n."""
    lengths = draw(st.lists(st.integers(1, 4), max_size=3))
    m = sum(lengths)
    has = draw(st.lists(st.booleans(), min_size=2 * m, max_size=2 * m))
    places = np.where(has, np.cumsum(has) - 1, -1).astype(np.int64).reshape(m, 2)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths).astype(np.int64) if m else np.zeros(0, np.int64)
    sealed = np.array(draw(st.lists(st.integers(0, 50), min_size=m, max_size=m)), np.int64) * DAY_US
    vectors = np.arange(start, start + sum(has), dtype=np.float32)[:, None]
    rows = np.arange(m, dtype=np.int64)
    return UserTexts(vectors, places[:, 0], places[:, 1], sealed, first, rows + 1, sealed)


@settings(max_examples=100, deadline=None)
@given(one=some_texts(), other=some_texts(start=100), data=st.data())
def test_rows_keep_their_texts_when_taken_joined_and_gathered(
    one: UserTexts, other: UserTexts, data: st.DataObject
) -> None:
    both = one.extend(other)
    assert listed(both) == listed(one) + listed(other)
    index = np.array(data.draw(st.lists(st.integers(0, max(len(both) - 1, 0)), max_size=6 if len(both) else 0)), int)
    taken = both.take(index)
    assert listed(taken) == [listed(both)[i] for i in index]
    padded = gathered(both, index)
    for row, expected in zip(padded, listed(taken), strict=True):
        assert row[: len(expected)] == expected
        assert all(entry == (None, None, 0.0) for entry in row[len(expected) :])


def test_a_vector_alone_is_a_summary_of_age_zero() -> None:
    texts = UserTexts.single(np.array([[3.0], [4.0]], np.float32))
    assert listed(texts) == [[(3, None, 0.0)], [(4, None, 0.0)]]
