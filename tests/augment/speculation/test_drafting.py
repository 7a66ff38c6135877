"""Drafts depend on the pool, the request and nothing else; what they rest on is counted right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from augment.speculation import evidence
from augment.speculation.contexts import MAX_ORDER, begin, build_index, extend
from augment.speculation.drafting import Drafter, DraftingConfig, Drafts
from augment.speculation.pool import RetrievalPool

LENGTH = 400


def phrased(count: int, seed: int) -> list[list[int]]:
    """Texts of 60 to 100 tokens made of 30 phrases that all seeds share."""
    phrases = [np.random.default_rng(n).integers(0, 300, 4 + n % 7).tolist() for n in range(30)]
    rng = np.random.default_rng(seed)
    return [[token for p in rng.integers(0, 30, 12) for token in phrases[p]] for _ in range(count)]


@pytest.fixture(scope="module")
def pool() -> RetrievalPool:
    return RetrievalPool.build(phrased(150, seed=1), [f"g{n % 4}" for n in range(150)])


class Batch:
    """Requests in the rows of a drafter, as vLLM holds them."""

    def __init__(self, pool: RetrievalPool | None, rows: int = 4, **config: object) -> None:
        self.drafter = Drafter(pool, DraftingConfig(**config), rows, LENGTH)  # type: ignore[arg-type]
        self.tokens = np.zeros((rows, LENGTH), np.int32)
        self.lengths = np.zeros(rows, np.int32)

    def start(self, row: int, prompt: list[int], group: str | None = None) -> None:
        self.write(row, prompt)
        self.drafter.start(row, len(prompt), group)

    def write(self, row: int, tokens: list[int]) -> None:
        """The row holds exactly these."""
        self.tokens[row, : len(tokens)] = tokens
        self.lengths[row] = len(tokens)

    def propose(self, rows: list[int], limit: int = 16) -> Drafts:
        chosen = np.array(rows, np.int32)
        return self.drafter.propose(self.tokens, self.lengths, chosen, np.full(len(rows), limit, np.int32))


def fresh(pool: RetrievalPool | None, prompt: list[int], output: list[int], group: str | None = None) -> Drafts:
    """What a drafter that never saw anything else drafts."""
    batch = Batch(pool, 1, frozen=True)
    batch.start(0, prompt, group)
    batch.write(0, prompt + output)
    return batch.propose([0])


def assert_same(found: Drafts, row: int, expected: Drafts) -> None:
    np.testing.assert_array_equal(found.tokens[row], expected.tokens[0])
    np.testing.assert_array_equal(found.probability[row], expected.probability[0])


def test_known_text_is_drafted(pool: RetrievalPool) -> None:
    drafted = accepted = 0
    for text in phrased(20, seed=2):
        for place in range(0, len(text) - 1, 5):
            drafts = fresh(pool, [7, 7], text[:place])
            n = np.count_nonzero(drafts.probability)
            right = drafts.tokens[0, :n] == (text[place:] + [-1] * 16)[:n]
            drafted, accepted = drafted + n, accepted + int(np.cumprod(right).sum())
    # Within a phrase of 4 to 10 tokens the next one is certain; what a draft says past its end is a guess of 30.
    assert accepted / drafted > 0.6
    assert accepted > 20 * 15 * 1.5


def test_drafts_do_not_depend_on_the_steps_before(pool: RetrievalPool) -> None:
    prompt, text = [9, 8, 7], phrased(1, seed=3)[0]
    rng = np.random.default_rng(0)
    batch = Batch(pool, frozen=True)
    batch.start(2, prompt, "g1")
    place = 0
    while place < len(text):
        batch.write(2, prompt + text[:place])
        assert_same(batch.propose([2]), 0, fresh(pool, prompt, text[:place], "g1"))
        place += int(rng.integers(1, 9))


def test_rows_do_not_see_each_other(pool: RetrievalPool) -> None:
    texts = phrased(4, seed=4)
    batch = Batch(pool, frozen=True)
    for row, text in enumerate(texts):
        batch.start(row, text[:5])
        batch.write(row, text[: 20 + row])
    together = batch.propose([3, 0, 2, 1])
    for place, row in enumerate([3, 0, 2, 1]):
        assert_same(together, place, fresh(pool, texts[row][:5], texts[row][5 : 20 + row]))


def test_threads_change_nothing(pool: RetrievalPool) -> None:
    texts = phrased(48, seed=5)
    found = []
    for threads in (1, 3):
        batch = Batch(pool, 48, threads=threads)
        for row, text in enumerate(texts):
            batch.start(row, text[:5])
            batch.write(row, text[:30])
        found.append(batch.propose(list(range(48))))
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_array_equal(found[0].probability, found[1].probability)


def test_a_reused_row_forgets(pool: RetrievalPool) -> None:
    first, second = phrased(2, seed=6)
    batch = Batch(pool, frozen=True)
    batch.start(1, first[:10], "g2")
    batch.write(1, first)
    batch.propose([1])
    batch.start(1, second[:4])
    batch.write(1, second[:25])
    assert_same(batch.propose([1]), 0, fresh(pool, second[:4], second[4:25]))


def test_a_text_that_shrinks_is_taken_in_anew(pool: RetrievalPool) -> None:
    # As when a request is preempted and comes back with fewer tokens, and then goes another way.
    text, other = phrased(2, seed=7)
    batch = Batch(pool, frozen=True)
    batch.start(0, text[:6], "g3")
    batch.write(0, text)
    batch.propose([0])
    changed = text[:20] + other[:9]
    batch.write(0, changed)
    assert_same(batch.propose([0]), 0, fresh(pool, text[:6], changed[6:], "g3"))


def test_limits_and_probabilities_hold(pool: RetrievalPool) -> None:
    texts = phrased(4, seed=8)
    batch = Batch(pool, max_draft_tokens=6, min_probability=0.25)
    for row, text in enumerate(texts):
        batch.start(row, text[:3])
        batch.write(row, text[:30])
    rows = np.arange(4, dtype=np.int32)
    limits = np.array([0, 2, 6, 60], np.int32)
    drafts = batch.drafter.propose(batch.tokens, batch.lengths, rows, limits)
    assert drafts.tokens.shape == drafts.probability.shape == (4, 6)
    assert (np.count_nonzero(drafts.probability, axis=1) <= limits).all()
    assert (np.diff(drafts.probability, axis=1) <= 0).all()
    assert (drafts.probability[drafts.probability > 0] >= 0.25).all()
    assert drafts.probability.max() <= 1


def test_a_row_that_was_never_started_is_refused(pool: RetrievalPool) -> None:
    batch = Batch(pool)
    batch.write(0, [1, 2, 3])
    with pytest.raises(ValueError, match=r"\[0\] were never started"):
        batch.propose([0])


def test_the_prompt_is_copied_from_without_any_pool() -> None:
    title = list(range(100, 112))
    drafts = fresh(None, [1, 2, *title, 3, 4], [50, 51, *title[:4]])
    assert drafts.tokens[0, :6].tolist() == title[4:10]


def _finish(batch: Batch, text: list[int]) -> None:
    batch.start(3, [1])
    batch.drafter.finish(3, np.array(text, np.int32))


def test_finished_texts_are_drafted_from() -> None:
    text = list(range(200, 260))
    batch = Batch(None)
    batch.start(0, [5, 6])
    batch.write(0, [5, 6, *text[:8]])
    assert not batch.propose([0]).probability.any()
    _finish(batch, text)
    # One step to start the index, one to put it into use.
    batch.propose([0])
    # A row that was under way when the index changed, and one that started after.
    assert batch.propose([0]).tokens[0, :4].tolist() == text[8:12]
    batch.start(1, [7])
    batch.write(1, [7, *text[:8]])
    drafts = batch.propose([0, 1])
    np.testing.assert_array_equal(drafts.tokens[0], drafts.tokens[1])


def test_a_frozen_drafter_learns_nothing(pool: RetrievalPool) -> None:
    text = list(range(400, 460))
    batch = Batch(pool, frozen=True)
    _finish(batch, text)
    batch.start(0, [5, 6])
    batch.write(0, [5, 6, *text[:8]])
    for _ in range(3):
        assert_same(batch.propose([0]), 0, fresh(pool, [5, 6], text[:8]))


def test_texts_under_way_are_drafted_from_by_others() -> None:
    text = list(range(200, 300))
    batch = Batch(None)
    for row, prompt in ((0, [5, 6]), (1, [7])):
        batch.start(row, prompt)
    batch.write(0, [5, 6, *text[:60]])
    batch.write(1, [7, *text[:8]])
    assert not batch.propose([0, 1]).probability.any()
    batch.write(0, [5, 6, *text[:62]])
    drafts = batch.propose([0, 1])
    # The one ahead has nobody to draft from: its own text is no evidence that it will repeat itself.
    assert not drafts.probability[0].any()
    assert drafts.tokens[1, :16].tolist() == text[8:24]
    # Where the one ahead was when the index was made, nothing is known: neither a token nor an end.
    batch.write(1, [7, *text[:60]])
    assert not batch.propose([1]).probability.any()


def test_a_text_that_was_given_up_is_forgotten() -> None:
    """vLLM moved its request to another row, or preempted it: the text goes on elsewhere under a new number."""
    text = list(range(200, 300))
    batch = Batch(None)
    batch.start(0, [5, 6])
    batch.start(1, [7])
    batch.write(0, [5, 6, *text[:60]])
    batch.write(1, [7, *text[:8]])
    batch.propose([0, 1])
    assert batch.propose([0, 1]).probability[1].any()
    batch.start(0, [8])
    batch.write(0, [8, *range(300, 360)])
    batch.propose([0, 1])
    assert not batch.propose([0, 1]).probability[1].any()


def test_alone_a_row_drafts_as_if_it_learned_nothing(pool: RetrievalPool) -> None:
    text = phrased(1, seed=12)[0] * 3
    learning, frozen = Batch(pool), Batch(pool, frozen=True)
    for batch in (learning, frozen):
        batch.start(0, [5, 6])
    for place in range(0, len(text), 7):
        for batch in (learning, frozen):
            batch.write(0, [5, 6, *text[:place]])
        assert_same(learning.propose([0]), 0, frozen.propose([0]))


def test_two_drafters_that_saw_the_same_texts_agree() -> None:
    texts = phrased(60, seed=9)
    found = []
    for _ in range(2):
        batch = Batch(None)
        batch.start(0, texts[55][:3])
        for place, text in enumerate(texts[:50], 3):
            _finish(batch, text)
            batch.write(0, texts[55][:place])
            drafts = batch.propose([0])
        found.append(drafts)
    assert found[0].probability.any()
    assert_same(found[0], 0, found[1])


def test_a_session_drafts_as_a_row_does(pool: RetrievalPool) -> None:
    prompt, text = [4, 5], phrased(1, seed=10)[0]
    session = pool.session(prompt, "g0")
    for start, end in ((0, 3), (3, 4), (4, 20)):
        session.accept(text[start:end])
        expected = fresh(pool, prompt, text[:end], "g0")
        n = np.count_nonzero(expected.probability)
        assert session.propose(16) == expected.tokens[0, :n].tolist()


def _brute_force(
    texts: list[list[int]], own: list[int], context: list[int], longest: int
) -> tuple[NDArray[np.float64], dict[int, NDArray[np.float64]]]:
    """Totals [2, orders] and each token's counts [2, orders], from every place of every text."""
    orders = evidence.ORDERS
    totals, counts = np.zeros((2, len(orders))), {}
    for source, (sequences, most) in enumerate((([[-9, *t, -1] for t in texts], longest), ([own], int(orders[-1])))):
        for sequence in sequences:
            for place in range(1, len(sequence)):
                length = 0
                while length < min(place, len(context), most) and sequence[place - 1 - length] == context[-1 - length]:
                    length += 1
                if length:
                    reached = orders <= length
                    totals[source] += reached
                    counts.setdefault(sequence[place], np.zeros((2, len(orders))))[source] += reached
    return totals, counts


@given(
    # Three tokens: of more, the own text's weakest matches are not all counted.
    st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=4),
    st.lists(st.integers(0, 2), min_size=1, max_size=25),
)
@settings(max_examples=150, deadline=None)
def test_evidence_is_what_counting_gives(texts: list[list[int]], output: list[int]) -> None:
    # So small that every place is looked at: larger intervals are sampled.
    index = build_index([np.array(text, np.int32) for text in texts])
    low, high = np.zeros(MAX_ORDER + 1, np.int64), np.zeros(MAX_ORDER + 1, np.int64)
    tokens = np.array(output, np.int32)
    heads = np.full(evidence.COUNT_SLOTS, -1, np.int32)
    links = np.full(len(output), -1, np.int32)
    seen = np.zeros(evidence.COUNT_SLOTS, np.uint16)
    order = begin(index, low, high)
    for place, token in enumerate(output):
        evidence.append_own(tokens, place, heads, links, seen)
        order = extend(index, token, order, low, high)
    scratch = evidence.make_scratch()
    evidence.clear(scratch)
    known = evidence.collect_own(scratch, tokens, links, heads[output[-1]], tokens, len(output))
    affinity = np.zeros(256, np.float32)
    known = evidence.collect_pool(scratch, known, evidence.CANDIDATES, index, order, low, high, affinity, 0, -1)
    evidence.describe(scratch, known, order, seen)
    totals, counts = _brute_force(texts, output, [-9, *output], MAX_ORDER)
    if totals[0, 0] <= evidence.LOOKED_AT:
        np.testing.assert_allclose(scratch.totals, totals)
        for place, token in enumerate(scratch.candidates[:known].tolist()):
            np.testing.assert_allclose(scratch.counts[:, :, place], counts[token])
        assert set(scratch.candidates[:known].tolist()) == set(counts)
