import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapters.samples
from adapters.samples import build_samples, newest_before, time_split
from warehouse.errors import InputError, MissingColumn
from warehouse.schemas import ALWAYS, TIMESTAMP


def naive_newest(
    entity: list[int], ts: list[int], row_entity: list[int], row_ts: list[int], length: int
) -> list[list[int]]:
    """One target at a time: older rows of the same entity, newest first, the later row first among equal times."""
    out = []
    for who, when in zip(entity, ts, strict=True):
        older = [k for k in range(len(row_ts)) if row_entity[k] == who and row_ts[k] < when]
        older.sort(key=lambda k: (row_ts[k], k), reverse=True)
        out.append((older + [-1] * length)[:length])
    return out


# Few entities and few times, so that ties and misses are common.
events = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 6)), max_size=25)


@given(targets=events, rows=events, length=st.integers(1, 4), chunk=st.integers(1, 30))
def test_newest_before_is_the_naive_search(
    targets: list[tuple[int, int]], rows: list[tuple[int, int]], length: int, chunk: int
) -> None:
    columns = [np.array([r[k] for r in table], dtype=np.int64) for table in (targets, rows) for k in (0, 1)]
    before = adapters.samples.LOOKUP_ROWS
    adapters.samples.LOOKUP_ROWS = chunk
    try:
        found = newest_before(*columns, length)
    finally:
        adapters.samples.LOOKUP_ROWS = before
    assert found.tolist() == naive_newest(*(c.tolist() for c in columns), length)


def times(values: list[int]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(TIMESTAMP)


def vector_rows(entity: str, rows: list[tuple[str, int, int]]) -> pa.Table:
    ids, valid_from, row = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {
            entity: pa.array(ids, pa.string()),
            "valid_from": times(list(valid_from)),
            "row": pa.array(row, pa.int64()),
        }
    )


def behaviours(rows: list[tuple[str, str, int]]) -> pa.Table:
    users, items, ts = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table(
        {"user_id": pa.array(users, pa.string()), "item_id": pa.array(items, pa.string()), "ts": times(list(ts))}
    )


streams = st.lists(
    st.tuples(st.sampled_from(["u0", "u1"]), st.sampled_from(["i0", "i1", "i2"]), st.integers(0, 8), st.booleans()),
    max_size=20,
)
knowledge = st.lists(st.tuples(st.sampled_from(["u0", "u1", "unseen"]), st.integers(-1, 9)), max_size=8)


@given(stream=streams, known=knowledge)
def test_samples_know_only_what_is_strictly_older(
    stream: list[tuple[str, str, int, bool]], known: list[tuple[str, int]]
) -> None:
    positive = np.array([p for *_, p in stream], dtype=bool)
    table = vector_rows("user_id", [(u, t, 100 + k) for k, (u, t) in enumerate(known)])
    samples = build_samples(
        behaviours([row[:3] for row in stream]), positive, table, vector_rows("item_id", []), history_length=3
    )
    items = samples.items.to_pylist()
    for n, (user, item, ts, _) in enumerate(stream):
        assert samples.users[samples.user[n]].as_py() == user
        assert items[samples.item[n]] == item
        for wanted, column in ((True, samples.liked), (False, samples.disliked)):
            older = [(t, k, i) for k, (u, i, t, p) in enumerate(stream) if u == user and t < ts and p == wanted]
            newest = [i for *_, i in sorted(older, reverse=True)][:3]
            assert [items[code - 1] for code in column[n] if code] == newest
        valid = [(t, k) for k, (u, t) in enumerate(known) if u == user and t < ts]
        assert samples.user_row[n] == (100 + max(valid)[1] if valid else -1)
        assert samples.item_row[n] == -1


def test_a_planted_future_changes_no_earlier_sample() -> None:
    past = [("u", "a", 1), ("u", "b", 2), ("u", "c", 3)]
    users = [("u", 0, 0), ("u", 2, 1)]
    items = [("c", 0, 0)]
    before = build_samples(
        behaviours(past), np.ones(3, bool), vector_rows("user_id", users), vector_rows("item_id", items)
    )
    # From the very instant of the last event on: a later interaction and fresher knowledge of its user and item.
    after = build_samples(
        behaviours([*past, ("u", "LEAK", 3), ("u", "LEAK", 4)]),
        np.ones(5, bool),
        vector_rows("user_id", [*users, ("u", 3, 777)]),
        vector_rows("item_id", [*items, ("c", 3, 777)]),
    )
    for column in ("liked", "disliked", "user_row", "item_row", "label", "ts"):
        np.testing.assert_array_equal(getattr(after, column)[:3], getattr(before, column))
    assert after.user_row[4] == 777


def test_always_valid_vectors_reach_every_sample() -> None:
    table = pa.table({"item_id": ["i"], "valid_from": pa.array([ALWAYS], TIMESTAMP), "row": [5]})
    samples = build_samples(behaviours([("u", "i", 0)]), np.array([True]), vector_rows("user_id", []), table)
    assert samples.item_row.tolist() == [5]


@pytest.mark.parametrize(
    "genres",
    [pa.array(["drama", None, "comedy"]), pa.array([["drama", "war"], [], ["comedy"]], pa.list_(pa.string()))],
)
def test_category_is_the_first_value_of_an_attribute(genres: pa.Array) -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "genres": genres})
    samples = build_samples(
        behaviours([("u", "c", 1), ("u", "b", 2), ("u", "a", 3), ("u", "unlisted", 4)]),
        np.ones(4, bool),
        vector_rows("user_id", []),
        vector_rows("item_id", []),
        items=items,
        category="genres",
    )
    assert samples.categories == ("comedy", "drama")
    assert samples.category[samples.item].tolist() == [1, 0, 2, 0]


def test_missing_columns_and_labels_are_named() -> None:
    none = vector_rows("user_id", []), vector_rows("item_id", [])
    with pytest.raises(MissingColumn, match="`ts`"):
        build_samples(behaviours([]).drop_columns(["ts"]), np.zeros(0, bool), *none)
    with pytest.raises(MissingColumn, match="`row`"):
        build_samples(behaviours([]), np.zeros(0, bool), none[0].drop_columns(["row"]), none[1])
    with pytest.raises(InputError, match="1 behaviours came with 2 labels"):
        build_samples(behaviours([("u", "i", 1)]), np.zeros(2, bool), *none)


def test_take_keeps_codes_and_picks_rows() -> None:
    samples = build_samples(
        behaviours([("u", "a", 1), ("v", "b", 2)]),
        np.array([True, False]),
        vector_rows("user_id", []),
        vector_rows("item_id", []),
    )
    taken = samples.take(np.array([False, True]))
    assert len(taken) == 1
    assert taken.items[taken.item[0]].as_py() == "b"
    assert taken.users.to_pylist() == ["u", "v"]


@given(
    ts=st.lists(st.integers(0, 30), min_size=10, max_size=80),
    valid=st.sampled_from([0.1, 0.2]),
    holdout=st.sampled_from([0.1, 0.3]),
)
def test_time_split_is_in_order_and_never_cuts_an_instant(ts: list[int], valid: float, holdout: float) -> None:
    column = np.array(ts)
    try:
        split = time_split(column, valid, holdout)
    except InputError:
        # Only where the fractions' cuts fall on one instant, or on the first.
        ordered = sorted(ts)
        n = len(ts)
        cuts = ordered[int(n * (1 - holdout - valid))], ordered[int(n * (1 - holdout))]
        assert cuts[0] == cuts[1] or cuts[0] == ordered[0]
        return
    train, validation, test = split.masks(column)
    assert (train.astype(int) + validation + test == 1).all()
    assert column[train].max() < column[validation].min() <= column[validation].max() < column[test].min()
    assert test.sum() >= holdout * len(ts) - 1e-6
    assert train.sum() <= (1 - holdout - valid) * len(ts) + 1e-6


def test_time_split_of_distinct_times_has_the_fractions_asked_for() -> None:
    masks = time_split(np.random.default_rng(0).permutation(1000), 0.1, 0.2).masks(np.arange(1000))
    assert [int(m.sum()) for m in masks] == [700, 100, 200]
