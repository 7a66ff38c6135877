"""The learned mixing against its formula in numpy, and what fitting it is good for."""

import numpy as np

from augment.speculation import evidence, mixing
from augment.speculation.contexts import build_index
from augment.speculation.evidence import CONTEXT_FEATURES, FEATURES, KEPT
from augment.speculation.pool import RetrievalPool


def test_scores_follow_the_formula() -> None:
    rng = np.random.default_rng(0)
    for kept in range(KEPT + 1):
        mixer = mixing.unpack(rng.normal(0, 0.3, mixing.SIZE).astype(np.float32))
        scratch = evidence.make_scratch()
        scratch.features[:] = rng.normal(size=(KEPT, FEATURES)) * (rng.random((KEPT, FEATURES)) < 0.5)
        scratch.context[:] = rng.normal(size=CONTEXT_FEATURES)
        scratch.base[:] = rng.normal(size=KEPT + 1)
        scratch.kept[:] = rng.permutation(100)[:KEPT]
        token, probability = mixing.most_likely(scratch, kept, mixer, np.empty((3, mixing.HIDDEN), np.float32))
        if kept == 0:
            assert (token, probability) == (-1, 0)
            continue
        x, c = scratch.features[:kept], scratch.context
        own = scratch.base[:kept] + x @ mixer.direct
        own += np.maximum(x @ mixer.inner + c @ mixer.outer + mixer.bias, 0) @ mixer.read
        rest = scratch.base[KEPT] + c @ mixer.rest + mixer.rest_offset[0]
        rest += np.maximum(c @ mixer.rest_inner + mixer.rest_bias, 0) @ mixer.rest_read
        shares = np.exp(np.append(own, rest))
        assert token == scratch.kept[own.argmax()]
        np.testing.assert_allclose(probability, shares[:-1].max() / shares.sum(), rtol=1e-4)


PHRASES = [list(range(start, start + 9)) for start in (100, 200, 300)]


def _phrases_and_numbers(count: int, seed: int) -> list[list[int]]:
    """Texts of fixed phrases with a random number after each: having said a number makes it no likelier to come."""
    rng = np.random.default_rng(seed)
    return [
        [token for p in rng.integers(0, 3, 14) for token in (*PHRASES[p], int(rng.integers(400, 900)))]
        for _ in range(count)
    ]


def test_fitting_is_repeatable() -> None:
    texts = [np.array(text, np.int32) for text in _phrases_and_numbers(60, seed=3)]
    index = build_index(texts)
    first, again = mixing.fit(index, texts, None), mixing.fit(index, texts, None)
    np.testing.assert_array_equal(mixing.pack(first), mixing.pack(again))


def test_fitting_learns_what_the_own_text_does_not_foretell() -> None:
    fitted = RetrievalPool.build(_phrases_and_numbers(60, seed=3))
    plain = RetrievalPool(fitted.index, mixing.unfitted(), [], fitted.text_groups, fitted.identity)
    counted = []
    for pool in (fitted, plain):
        right = wrong = 0
        for text in _phrases_and_numbers(5, seed=4):
            session = pool.session([1, 2])
            for place in range(len(text) - 1):
                draft = session.propose(9)
                hits = int(np.cumprod(np.equal(draft, (text[place:] + [-1] * 9)[: len(draft)])).sum())
                right, wrong = right + hits, wrong + len(draft) - hits
                session.accept(text[place : place + 1])
        counted.append((right, wrong))
    (right, wrong), (plain_right, plain_wrong) = counted
    assert wrong < plain_wrong / 2
    assert right > 0.95 * plain_right


def test_too_little_text_leaves_the_blend_alone() -> None:
    text = np.arange(50, dtype=np.int32)
    mixer = mixing.fit(build_index([text]), [text], None)
    assert not mixing.pack(mixer).any()
