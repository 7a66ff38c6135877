from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from adapters.config import CtrConfig
from adapters.lift.config import MatrixConfig, TowerConfig
from adapters.lift.data import LiftData
from adapters.lift.rerank import LENGTH, Lists, make_lists, measure_rerank, ndcg_at
from adapters.lift.splits import split_by
from warehouse.errors import InputError


@pytest.fixture(scope="module")
def lists(data: LiftData) -> Lists:
    return make_lists(data, split_by("kar", data.samples))


def test_a_list_is_four_consecutive_events_and_six_items_never_met(data: LiftData, lists: Lists) -> None:
    samples, candidates = data.samples, lists.data.samples
    split = split_by("kar", samples)
    targets = np.sort(np.concatenate([split.train, split.valid, split.test]))
    met = {(u, i) for u, i in zip(samples.user.tolist(), samples.item.tolist(), strict=True)}
    for number in range(0, len(candidates) // LENGTH, 37):
        rows = np.arange(number * LENGTH, (number + 1) * LENGTH)
        [user] = set(candidates.user[rows].tolist())
        [ts] = set(candidates.ts[rows].tolist())
        items = candidates.item[rows].tolist()
        real = [i for i in items if (user, i) in met]
        mine = targets[samples.user[targets] == user]
        start = int(np.flatnonzero(samples.ts[mine] == ts)[0])
        assert start % 4 == 0
        four = mine[start : start + 4]
        assert sorted(samples.item[four].tolist()) == sorted(real)
        assert len(set(items) - set(real)) == 6
        liked = {int(samples.item[e]) for e in four if samples.label[e] > 0}
        assert liked
        assert {i for i, y in zip(items, candidates.label[rows], strict=True) if y > 0} == liked
        np.testing.assert_array_equal(candidates.liked[rows], np.tile(samples.liked[four[0]], (LENGTH, 1)))


def test_lists_of_a_part_are_of_its_users_and_read_their_own_texts(data: LiftData, lists: Lists) -> None:
    split = split_by("kar", data.samples)
    of_list = lists.data.samples.user[::LENGTH]
    for made, rows in (
        (lists.split.train, split.train),
        (lists.split.valid, split.valid),
        (lists.split.test, split.test),
    ):
        assert set(of_list[made].tolist()) <= set(data.samples.user[rows].tolist())
    np.testing.assert_array_equal(lists.data.sources["facts"].holder, lists.data.samples.item)
    np.testing.assert_array_equal(lists.data.sources["summaries"].holder, lists.data.samples.user)


def test_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random((30, LENGTH)) < 0.3).astype(np.float32)
    label[:, 0] = 1
    score = rng.random((30, LENGTH))
    for k in (1, 3, 7, 10):
        expected = [ndcg_score(y[None], s[None], k=k) for y, s in zip(label, score, strict=True)]
        np.testing.assert_allclose(ndcg_at(label, score, k), expected)


def test_rerank_reports_every_arm_and_its_difference_to_base(data: LiftData) -> None:
    config = MatrixConfig(
        seeds=(0,),
        kar_history_length=3,
        ctr=CtrConfig(embedding_dim=4, max_epochs=1, patience=1),
        tower=TowerConfig(components=8, out_dim=4, hidden=4),
        bootstrap_draws=20,
    )
    some = data.of_users(70)
    report = measure_rerank(some, split_by("kar", some.samples), config)
    assert list(report.ndcg) == ["base", "titles", "shuffled", "full"]
    assert set(report.differences) == {"titles", "shuffled", "full"}
    gain = report.ndcg["full"][7] - report.ndcg["base"][7]
    assert report.differences["full"].value == pytest.approx(gain)
    assert report.differences["full"].low <= gain <= report.differences["full"].high


def test_a_user_who_met_nearly_all_items_is_refused(data: LiftData) -> None:
    samples = data.samples
    few = replace(samples, items=samples.items[:8], item=samples.item % 8, category=samples.category[:8])
    with pytest.raises(InputError, match="too few are left"):
        make_lists(replace(data, samples=few), split_by("kar", few))
