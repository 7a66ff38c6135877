import numpy as np
import pytest

from adapters.lift.data import LiftData, source_of


def test_a_sample_reads_the_newest_text_that_is_older_than_it() -> None:
    rng = np.random.default_rng(0)
    entity, valid_from = rng.integers(-1, 5, 40), rng.integers(0, 100, 40)
    holder, ts = rng.integers(-1, 6, 300), rng.integers(0, 120, 300)
    source = source_of("user", np.arange(40.0)[:, None], entity, valid_from, holder)
    for delay in (0, 17):
        for row, (who, when) in zip(source.rows(ts, delay), zip(holder, ts, strict=True), strict=True):
            times = valid_from[(entity == who) & (who >= 0) & (valid_from < when - delay)]
            if not len(times):
                assert row == -1
                continue
            assert source.entity[row] == who
            assert source.valid_from[row] == times.max()


def test_the_digest_names_what_is_learned_from(data: LiftData) -> None:
    assert data.digest == data.take(np.arange(len(data.samples))).digest
    assert data.digest != data.take(np.arange(len(data.samples) - 1)).digest
    changed = dict(data.sources)
    facts = changed["facts"]
    changed["facts"] = source_of("item", facts.vectors + 1, facts.entity, facts.valid_from, facts.holder)
    assert data.digest != LiftData(data.name, data.samples, changed, data.traits).digest


def test_all_users_are_taken_where_no_more_are_there(data: LiftData) -> None:
    assert data.of_users(None) is data
    assert data.of_users(10**6) is data
    first, again = data.of_users(20, seed=1), data.of_users(20, seed=1)
    np.testing.assert_array_equal(first.samples.user, again.samples.user)
    assert set(np.unique(first.samples.user)) != set(np.unique(data.of_users(20, seed=2).samples.user))
    assert len(first.sources["facts"].holder) == len(first.samples) == pytest.approx(1600, rel=0.2)


def test_two_sources_beside_each_other_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(3)
    holder, ts = rng.integers(0, 8, 500), rng.integers(0, 120, 500)
    one, other = (
        source_of("item", rng.normal(size=(30, dim)), rng.integers(0, 8, 30), rng.integers(0, 100, 30), holder)
        for dim in (3, 2)
    )
    both = one.beside(other)
    assert both.vectors.shape[1] == 5
    row, alone = both.rows(ts), [source.vectors[source.rows(ts)] for source in (one, other)]
    has = [source.rows(ts) >= 0 for source in (one, other)]
    np.testing.assert_array_equal(row >= 0, has[0] | has[1])
    for part, vectors, there in zip((slice(0, 3), slice(3, 5)), alone, has, strict=True):
        np.testing.assert_array_equal(both.vectors[row[there]][:, part], vectors[there])
        missing = ~there & (row >= 0)
        assert missing.any()
        assert not both.vectors[row[missing]][:, part].any()
