"""`seal_bucket` against a plain loop over lists, against SQL, and against itself with a stream cut up."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from augment.sealing import PartitionConfig, partition_digests, seal_bucket
from tests.augment.partition_oracle import DAY, EPOCH, Oracle, Row, behaviours, digest
from warehouse.schemas import BEHAVIOURS, OPEN_PARTITIONS, PARTITIONS

HOUR = DAY // 24
SHARED = Path(__file__).parents[2].parent / "shared"

untimed = settings(deadline=None)

# Few of each, so that events tie in every part of the order; "z" < "é" < "𝄞" by bytes, as by code point.
rows = st.tuples(
    st.sampled_from(["u", "ü", "用户", "u1"]),
    st.sampled_from(["", "z", "é", "𝄞", "item 10", "item 9"]),
    st.one_of(st.integers(-3, 3), st.integers(-40, 40).map(lambda hour: hour * HOUR), st.integers(-(10**16), 10**17)),
    st.sampled_from([1.0, 4.5, 0.0, -0.0, -2.0]),
    st.sampled_from(["interact", "buy", "click"]),
)
runs = st.lists(st.lists(rows, min_size=1, max_size=25), min_size=1, max_size=4)
days = st.none() | st.sampled_from([0.5 / 86_400_000_000, 0.02, 1 / 24, 0.25, 2.0, 1e30])
configs = st.builds(
    PartitionConfig,
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    max_age_days=days,
    gap_days=days,
)


@untimed
@given(runs, configs)
def test_runs_with_late_events_equal_the_plain_loop(runs: list[list[Row]], config: PartitionConfig) -> None:
    oracle, still_open = Oracle(config), OPEN_PARTITIONS.empty_table()
    for run in runs:
        sealed = seal_bucket(behaviours(run), still_open, config)
        still_open = sealed.open_partitions
        assert sealed.partitions.equals(oracle.run(run))
        assert still_open.equals(oracle.open_partitions())
        assert (sealed.events, sealed.users) == (len(run), len({row[0] for row in run}))


@untimed
@given(st.data(), st.lists(rows, min_size=1, max_size=40), st.lists(rows, max_size=20), configs)
def test_the_order_of_arrival_inside_a_run_changes_nothing(
    data: st.DataObject, run: list[Row], earlier: list[Row], config: PartitionConfig
) -> None:
    before = seal_bucket(behaviours(earlier), OPEN_PARTITIONS.empty_table(), config).open_partitions
    shuffled = data.draw(st.permutations(run))
    expected, found = (seal_bucket(behaviours(r), before, config) for r in (run, shuffled))
    assert found.partitions.equals(expected.partitions)
    assert found.open_partitions.equals(expected.open_partitions)


@untimed
@given(st.lists(rows, min_size=1, max_size=60), st.sets(st.integers(1, 59)), configs)
def test_a_stream_in_order_may_be_cut_into_runs_anywhere(
    stream: list[Row], cuts: set[int], config: PartitionConfig
) -> None:
    stream.sort(key=lambda row: (row[2], row[1], row[4], row[3], str(row[3])[0] != "-"))
    ends = [*sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    still_open, sealed = OPEN_PARTITIONS.empty_table(), []
    for start, stop in zip([0, *ends], ends, strict=False):
        made = seal_bucket(behaviours(stream[start:stop]), still_open, config)
        still_open = made.open_partitions
        sealed.append(made.partitions)
    whole = seal_bucket(behaviours(stream), OPEN_PARTITIONS.empty_table(), config)
    assert (
        pa.concat_tables(sealed)
        .sort_by([("user_id", "ascending"), ("partition_no", "ascending")])
        .equals(whole.partitions)
    )
    assert still_open.equals(whole.open_partitions)


def sealed_in_sql(events: pa.Table, sizes: tuple[int, ...]) -> pa.Table:
    """What a window query seals by sizes alone; DuckDB has no BLAKE2b, so digests come from the plain bytes."""
    ends = np.cumsum([0, *sizes]).tolist()
    cases = " ".join(f"WHEN n < {end} THEN {no}" for no, end in enumerate(ends[1:]))
    number = f"CASE {cases} ELSE {len(sizes)} + (n - {ends[-1]}) // {sizes[-1]} END"
    found = (
        duckdb.connect()
        .sql(
            f"""
            WITH numbered AS (
                SELECT *, row_number() OVER (PARTITION BY user_id ORDER BY ts, item_id, action, value) - 1 AS n
                FROM events),
            cut AS (SELECT *, {number} AS partition_no FROM numbered)
            SELECT user_id, partition_no::INTEGER AS partition_no, epoch_us(min(ts)) AS opened_at,
                   epoch_us(max(ts)) AS sealed_at, list(item_id ORDER BY n) AS items, list(value ORDER BY n) AS values,
                   list(epoch_us(ts) ORDER BY n) AS ts
            FROM cut GROUP BY user_id, partition_no
            HAVING count(*) = list_extract({list(sizes)}, least(partition_no + 1, {len(sizes)}))
            ORDER BY user_id, partition_no
            """
        )
        .to_arrow_table()
    )
    digests = [
        digest(row["user_id"], row["partition_no"], list(zip(row["ts"], row["items"], row["values"], strict=True)))
        for row in found.to_pylist()
    ]
    return found.drop_columns("ts").append_column("digest", pa.array(digests, pa.string())).cast(PARTITIONS)


def synthetic() -> pa.Table:
    rng = np.random.default_rng(5)
    users = rng.choice(300, 20_000, p=rng.dirichlet(np.full(300, 0.3)))
    seconds = rng.integers(0, 400, len(users))
    columns = [
        [f"u{n}" for n in users],
        [f"i{n}" for n in rng.integers(0, 50, len(users))],
        pa.array(seconds * 1_000_000).cast(BEHAVIOURS.field("ts").type),
        rng.integers(1, 6, len(users)).astype(np.float32),
        rng.choice(["interact", "buy"], len(users)),
    ]
    return pa.table(columns, schema=BEHAVIOURS)


def movielens() -> pa.Table:
    file = SHARED / "data" / "ml-100k" / "ratings.parquet"
    if not file.exists():
        pytest.skip(f"{file} is absent")
    ratings = pq.read_table(file)
    columns = [
        ratings["user_id"].cast(pa.string()),
        ratings["item_id"].cast(pa.string()),
        ratings["timestamp"].cast(pa.timestamp("s", tz="UTC")),
        ratings["rating"].cast(pa.float32()),
        pa.array(["interact"] * len(ratings)),
    ]
    return pa.table(columns, names=BEHAVIOURS.names).cast(BEHAVIOURS)


@pytest.mark.parametrize("sizes", [(10, 20, 50), (1,), (7, 3)])
@pytest.mark.parametrize("events", [synthetic, movielens])
def test_partitions_by_size_equal_a_window_query(events: Callable[[], pa.Table], sizes: tuple[int, ...]) -> None:
    table = events()
    made = seal_bucket(table, OPEN_PARTITIONS.empty_table(), PartitionConfig(sizes=sizes)).partitions
    assert len(made) > 500
    assert made.equals(sealed_in_sql(table, sizes))


def test_users_without_a_new_event_keep_their_row_even_under_other_rules() -> None:
    first = [("a", "i", hour * HOUR, 1.0, "interact") for hour in range(5)] + [("b", "i", 0, 1.0, "interact")]
    before = seal_bucket(behaviours(first), OPEN_PARTITIONS.empty_table(), PartitionConfig(sizes=(10,)))
    after = seal_bucket(
        behaviours([("b", "i", HOUR, 1.0, "interact"), ("c", "i", 0, 1.0, "interact")]),
        before.open_partitions,
        PartitionConfig(sizes=(2,), gap_days=0.01),
    )
    assert after.open_partitions.slice(0, 1).equals(before.open_partitions.slice(0, 1))
    assert after.open_partitions["user_id"].to_pylist() == ["a", "b", "c"]
    assert after.partitions["user_id"].to_pylist() == ["b"]
    assert (after.events, after.users) == (2, 2)


@pytest.mark.parametrize("rule", ["max_age_days", "gap_days"])
def test_only_an_event_beyond_the_limit_seals(rule: str) -> None:
    config = PartitionConfig(sizes=(10,), **{rule: 0.25})
    for ts, sealed in [(6 * HOUR, 0), (6 * HOUR + 1, 1)]:
        events = behaviours([("a", "i1", 0, 1.0, "interact"), ("a", "i2", ts, 1.0, "interact")])
        assert len(seal_bucket(events, OPEN_PARTITIONS.empty_table(), config).partitions) == sealed


def test_an_event_of_an_earlier_run_stands_before_any_new_one_it_ties_with() -> None:
    first, second = ([("a", "i", 0, value, "buy")] for value in (1.0, -2.0))
    before = seal_bucket(behaviours(first), OPEN_PARTITIONS.empty_table(), PartitionConfig())
    after = seal_bucket(behaviours(second), before.open_partitions, PartitionConfig())
    assert after.open_partitions["values"].to_pylist() == [[1.0, -2.0]]


def test_a_late_event_joins_the_open_partition_and_never_pulls_sealed_at_back() -> None:
    config = PartitionConfig(sizes=(2,))
    first = seal_bucket(
        behaviours([("a", "i1", 10, 1.0, "interact"), ("a", "i2", 20, 1.0, "interact")]),
        OPEN_PARTITIONS.empty_table(),
        config,
    )
    late = seal_bucket(
        behaviours([("a", "i3", 5, 1.0, "interact"), ("a", "i4", 6, 1.0, "interact")]), first.open_partitions, config
    )
    [row] = late.partitions.to_pylist()
    assert (row["partition_no"], row["items"]) == (1, ["i3", "i4"])
    assert micros(row["opened_at"]) == 5
    assert micros(row["sealed_at"]) == 20


def test_digests_are_pinned() -> None:
    """Made by `digest` of the oracle: a change here renames every partition ever stored."""
    found = partition_digests(
        pa.array(["u1", "ü"]),
        np.array([0, 7]),
        np.array([2, 1]),
        pa.array(["a", "", "用户"]),
        np.array([0, 1_000_000, -5]),
        np.array([1.0, -0.0, 4.5], np.float32),
    )
    assert found.to_pylist() == PINNED


PINNED = ["f342f4d4fc821acfdc914573f19762b8", "41208694ca9c880b71690d0a51690635"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"sizes": ()}, "sizes = []"),
        ({"sizes": (10, 0)}, "sizes = [10, 0]"),
        ({"max_age_days": 0}, "max_age_days"),
        ({"gap_days": float("inf")}, "gap_days"),
        ({"buckets": 0}, "buckets"),
        ({"size": (10,)}, "size"),
    ],
)
def test_a_config_that_cannot_be_fails_with_its_values(values: dict[str, object], shown: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PartitionConfig(**values)
    assert shown in str(caught.value)


def micros(when: datetime) -> int:
    return round((when - EPOCH).total_seconds() * 1_000_000)
