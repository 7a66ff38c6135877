import numpy as np
import pytest

from adapters.lift.shuffles import deal_in_part, deal_to_others, draw_vectors
from warehouse.errors import InputError


def test_dealing_gives_every_entity_the_texts_of_one_other() -> None:
    # Entities 0, 1, 2 hold 3, 1 and 2 rows; vector k is just k. Row 9 is held by none.
    entity = np.array([0, 0, 0, 1, 2, 2, 2, 0])
    row = np.array([4, 5, 6, 0, 2, 3, 3, -1])
    owners = {0: [4, 5, 6], 1: [0], 2: [2, 3]}
    vectors = np.arange(10, dtype=np.float32)[:, None]
    seen = set()
    for seed in range(20):
        dealt = deal_to_others(entity, row, vectors, np.random.default_rng(seed))[:, 0]
        givers = []
        for taker, rows in owners.items():
            giver = next(g for g, theirs in owners.items() if dealt[rows[0]] in theirs)
            assert giver != taker
            theirs = owners[giver]
            assert dealt[rows].tolist() == [theirs[min(k, len(theirs) - 1)] for k in range(len(rows))]
            givers.append(giver)
        assert sorted(givers) == [0, 1, 2]
        assert dealt[[1, 7, 8, 9]].tolist() == [1, 7, 8, 9]
        seen.add(tuple(givers))
    assert len(seen) == 2


def test_dealing_needs_two_entities_and_leaves_none_alone() -> None:
    vectors = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="single entity"):
        deal_to_others(np.array([0, 0]), np.array([0, 1]), vectors, np.random.default_rng(0))
    nobody = deal_to_others(np.array([0, 1]), np.array([-1, -1]), vectors, np.random.default_rng(0))
    np.testing.assert_array_equal(nobody, vectors)


def test_a_share_of_entities_holds_wrong_texts_and_the_rest_its_own() -> None:
    entity = np.repeat(np.arange(40), 2)
    vectors = np.arange(80, dtype=np.float32)[:, None]
    for share in (0.1, 0.5, 1.0):
        dealt = deal_in_part(entity, vectors, share, np.random.default_rng(1))
        wrong = (dealt != vectors)[:, 0].reshape(40, 2)
        assert (wrong[:, 0] == wrong[:, 1]).all()
        assert wrong[:, 0].sum() == round(share * 40)
        assert sorted(dealt[:, 0]) == sorted(vectors[:, 0])
    np.testing.assert_array_equal(deal_in_part(entity, vectors, 0.01, np.random.default_rng(1)), vectors)


def test_drawn_vectors_are_one_per_entity_and_say_nothing_of_the_true_ones() -> None:
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(500), 2)
    vectors = (rng.normal(size=(1000, 3)) * [1, 2, 3] + [5, 0, -5]).astype(np.float32)
    drawn = draw_vectors(entity, vectors, rng)
    np.testing.assert_array_equal(drawn[::2], drawn[1::2])
    np.testing.assert_allclose(drawn.mean(axis=0), vectors.mean(axis=0), atol=0.4)
    np.testing.assert_allclose(drawn.std(axis=0), vectors.std(axis=0), rtol=0.15)
    assert abs(np.corrcoef(drawn[:, 1], vectors[:, 1])[0, 1]) < 0.1
