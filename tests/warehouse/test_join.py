from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import catalog, store
from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.join import asof_join
from warehouse.manifest import publish
from warehouse.reader import Warehouse
from warehouse.reader import open as open_warehouse
from warehouse.schemas import TIMESTAMP

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]
Row = dict[str, Any]

USERS, ITEMS = ["u1", "u2", "ü'3"], ["i1", "i2"]


def naive_match(features: list[Row], entity: str, key: str | None, moment: datetime | None, clock: Any) -> Row | None:
    """The newest row of `key` that is valid before `moment`, and made by then if that counts, by reading them all."""
    if key is None or moment is None:
        return None
    valid = [row for row in features if row[entity] == key and row["valid_from"] < moment]
    if clock == "known":
        valid = [row for row in valid if row["created_at"] <= moment]
    return max(valid, key=lambda row: (row["valid_from"], row["created_at"], row.get("partition_no")), default=None)


def naive_join(
    impressions: list[Row], features: list[Row], entity: str, zeros: list[float] | None, clock: Any = "event"
) -> list[Row]:
    side = entity.removesuffix("_id")
    joined = []
    for row in impressions:
        found = naive_match(features, entity, row[entity], row["ts"], clock) or {}
        vector = found.get("augment")
        joined.append(
            {
                **row,
                f"{side}_augment": zeros if vector is None else vector,
                f"has_{side}_augment": vector is not None,
                f"{side}_valid_from": found.get("valid_from"),
                f"{side}_rung": found.get("rung"),
            }
        )
    return joined


def feature_sets(entity: str, ids: list[str]) -> st.SearchStrategy[list[Row]]:
    """Rows with times in 0..5, most of them tied with another in `valid_from`, some without a vector."""
    keys = st.lists(st.tuples(st.sampled_from(ids), *[st.integers(0, 5), st.integers(0, 2)] * 2), unique=True)

    def rows(drawn: list[tuple[Any, ...]]) -> list[Row]:
        made = []
        for number, (key, valid_from, created_at, partition_no, bare) in enumerate(drawn):
            none = bare == 2
            row = {entity: key, "valid_from": valid_from, "created_at": created_at, "rung": "none" if none else "own"}
            row["augment"] = None if none else [float(number), -float(number)]
            if entity == "user_id":
                row["partition_no"] = partition_no
            made.append(row)
        # What breaks ties must differ, or no row is the newest.
        ranks = [(row[entity], row["valid_from"], row["created_at"], row.get("partition_no")) for row in made]
        return [row for place, row in enumerate(made) if ranks.index(ranks[place]) == place]

    return keys.map(rows)


impression_sets = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from([*USERS, "stranger", None]),
            "item_id": st.sampled_from([*ITEMS, "stranger", None]),
            "ts": st.one_of(st.none(), st.integers(-1, 7)),
        }
    ),
    max_size=12,
)


def timed(rows: list[Row], at: Clock, *names: str) -> list[Row]:
    return [{**row, **{name: None if row[name] is None else at(row[name]) for name in names}} for row in rows]


def impressions_of(rows: list[Row]) -> pa.Table:
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("ts", TIMESTAMP)])
    return pa.Table.from_pylist(rows, schema=schema)


@given(
    impressions=impression_sets,
    features=feature_sets("user_id", USERS),
    fill=st.sampled_from(["zeros", "null"]),
    clock=st.sampled_from(["event", "known"]),
)
@settings(max_examples=100, deadline=None)
def test_the_join_equals_a_naive_oracle(
    feature_rows: Build, at: Clock, impressions: list[Row], features: list[Row], fill: Any, clock: Any
) -> None:
    impressions, features = timed(impressions, at, "ts"), timed(features, at, "valid_from", "created_at")
    joined = asof_join(
        impressions_of(impressions),
        feature_rows("user_features", features),
        entity="user_id",
        on="user_id",
        ts="ts",
        dim=2,
        fill=fill,
        clock=clock,
    )
    zeros = [0.0, 0.0] if fill == "zeros" else None
    assert joined.to_pylist() == naive_join(impressions, features, "user_id", zeros, clock)


@given(impressions=impression_sets, users=feature_sets("user_id", USERS), items=feature_sets("item_id", ITEMS))
@settings(max_examples=15, deadline=None)
def test_python_and_sql_join_published_tables_like_the_oracle(
    feature_rows: Build, at: Clock, impressions: list[Row], users: list[Row], items: list[Row]
) -> None:
    impressions = timed(impressions, at, "ts")
    users, items = timed(users, at, "valid_from", "created_at"), timed(items, at, "valid_from", "created_at")
    with TemporaryDirectory() as folder:
        # Two publications, so that the join reads several files.
        for part in (slice(0, None, 2), slice(1, None, 2)):
            rows = {
                "user_features": feature_rows("user_features", users[part]),
                "item_features": feature_rows("item_features", items[part]),
            }
            publish(Path(folder), rows, replace=False, now=at(0), lineage={})
        for clock in catalog.MACRO_SUFFIX:
            expected = naive_join(naive_join(impressions, users, "user_id", None, clock), items, "item_id", None, clock)
            table = impressions_of(impressions)
            assert open_warehouse(folder).join(table, fill="null", clock=clock).to_arrow().to_pylist() == expected
            check_macros(Path(folder), table, expected, catalog.MACRO_SUFFIX[clock])


def check_macros(root: Path, shown: pa.Table, expected: list[Row], suffix: str) -> None:
    """Each macro of one clock gives what the join gives, in a session far from UTC and for a `ts` without zone."""
    schema = "features.lorestream"
    with duckdb.connect() as con:
        con.execute("SET TimeZone = 'Asia/Tokyo'")
        con.execute(f"ATTACH '{root}/{catalog.CATALOG_NAME}' AS features (READ_ONLY)")
        naive = shown.set_column(2, "ts", shown["ts"].cast(pa.timestamp("us")))
        con.register("shown", naive.append_column("row", pa.array(range(len(naive)), pa.int64())))

        def query(sql: str) -> pa.Table:
            return con.sql(f"{sql} ORDER BY row").to_arrow_table().drop_columns(["row"])

        joined = query(f"FROM {schema}.features_asof{suffix}('shown')").set_column(2, "ts", shown["ts"])
        assert joined.select(list(expected[0]) if expected else []).to_pylist() == expected
        for side in ("user", "item"):
            vectors = [row[f"{side}_augment"] for row in expected]
            one_sided = query(f"FROM {schema}.{side}_features_asof{suffix}('shown')")
            assert one_sided[f"{side}_augment"].to_pylist() == vectors
            looked_up = query(f"SELECT row, {schema}.{side}_augment_at{suffix}({side}_id, ts) AS augment FROM shown")
            assert looked_up["augment"].to_pylist() == vectors


@given(moments=st.lists(st.integers(0, 20), min_size=1, max_size=20), sealed=st.sets(st.integers(0, 20), min_size=1))
@settings(max_examples=40, deadline=None)
def test_a_planted_future_token_reaches_no_earlier_row(
    feature_rows: Build, at: Clock, moments: list[int], sealed: set[int]
) -> None:
    # Each vector is the second from which it may be seen; late knowledge of old partitions is created last.
    rows = [
        {"user_id": "u", "valid_from": at(second), "created_at": at(100 - second), "augment": [float(second)]}
        for second in sealed
    ]
    joined = asof_join(
        pa.table({"user_id": ["u"] * len(moments), "ts": [at(moment) for moment in moments]}),
        feature_rows("user_features", rows, dim=1),
        entity="user_id",
        on="user_id",
        ts="ts",
        dim=1,
        fill="null",
    )
    for moment, vector in zip(moments, joined["user_augment"].to_pylist(), strict=True):
        visible = [second for second in sealed if second < moment]
        assert vector == ([float(max(visible))] if visible else None)


def test_a_late_backfill_of_an_old_partition_does_not_replace_what_serving_had(feature_rows: Build, at: Clock) -> None:
    """The case where ordering by greatest(valid_from, created_at) alone goes wrong."""
    rows = [
        {"user_id": "u", "valid_from": at(10), "created_at": at(12), "augment": [10.0]},
        {"user_id": "u", "valid_from": at(5), "created_at": at(20), "augment": [5.0]},
        {"user_id": "u", "valid_from": at(10), "created_at": at(30), "augment": [10.5]},
    ]
    moments = [9, 10, 11, 12, 19, 20, 29, 30, 99]
    joined = asof_join(
        pa.table({"user_id": ["u"] * len(moments), "ts": [at(moment) for moment in moments]}),
        feature_rows("user_features", rows, dim=1),
        entity="user_id",
        on="user_id",
        ts="ts",
        dim=1,
        clock="known",
    )
    seen = [vector[0] for vector in joined["user_augment"].to_pylist()]
    assert seen == [0.0, 0.0, 0.0, 10.0, 10.0, 10.0, 10.0, 10.5, 10.5]


@given(
    moments=st.lists(st.integers(0, 20), min_size=1, max_size=20),
    made=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1),
)
@settings(max_examples=40, deadline=None)
def test_by_the_known_clock_nothing_is_seen_before_it_was_made_nor_ever_lost_again(
    feature_rows: Build, at: Clock, moments: list[int], made: list[tuple[int, int]]
) -> None:
    # Each vector says when its events were over and when it was made.
    rows = [
        {"user_id": "u", "valid_from": at(v), "created_at": at(c), "augment": [float(v), float(c)]} for v, c in made
    ]
    moments = sorted(moments)
    joined = asof_join(
        pa.table({"user_id": ["u"] * len(moments), "ts": [at(moment) for moment in moments]}),
        feature_rows("user_features", rows),
        entity="user_id",
        on="user_id",
        ts="ts",
        dim=2,
        fill="null",
        clock="known",
    )
    seen = list(zip(moments, joined["user_augment"].to_pylist(), strict=True))
    assert all(vector is None or (vector[0] < moment and vector[1] <= moment) for moment, vector in seen)
    freshness = [-1.0 if vector is None else vector[0] for _, vector in seen]
    assert freshness == sorted(freshness)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory, feature_rows: Build, at: Clock) -> Warehouse:
    """One user `7` and one item `i`, both with a vector that is valid after second 10."""
    root = tmp_path_factory.mktemp("warehouse")
    users = feature_rows("user_features", [{"user_id": "7", "valid_from": at(10), "augment": [1.0, 2.0]}])
    items = feature_rows("item_features", [{"item_id": "i", "valid_from": at(10), "augment": [3.0, 4.0, 5.0]}], dim=3)
    publish(root, {"user_features": users, "item_features": items}, replace=False, now=at(0), lineage={})
    return open_warehouse(root)


def test_unknown_users_keep_their_rows_with_zeros_of_the_right_length(warehouse: Warehouse, at: Clock) -> None:
    shown = pa.table({"user_id": ["nobody", "7"], "item_id": ["i", "nothing"], "ts": [at(11), at(11)], "label": [0, 1]})
    joined = warehouse.join(shown).to_arrow()
    assert joined.select(shown.column_names).equals(shown)
    assert joined["user_augment"].to_pylist() == [[0.0, 0.0], [1.0, 2.0]]
    assert joined["item_augment"].to_pylist() == [[3.0, 4.0, 5.0], [0.0, 0.0, 0.0]]
    assert joined["has_user_augment"].to_pylist() == [False, True]
    assert joined["has_item_augment"].to_pylist() == [True, False]
    assert joined["user_rung"].to_pylist() == [None, "own"]


def test_an_event_at_the_very_instant_of_valid_from_sees_nothing(warehouse: Warehouse, at: Clock) -> None:
    just_after = pa.scalar(at(10), TIMESTAMP).cast(pa.int64()).as_py() + 1
    moments = pa.array([just_after - 1, just_after], pa.int64()).cast(TIMESTAMP)
    joined = warehouse.join(pa.table({"user_id": ["7", "7"], "ts": moments}), item=None).to_arrow()
    assert joined["has_user_augment"].to_pylist() == [False, True]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_any_unit_and_zone_mean_the_same_instant(
    warehouse: Warehouse, at: Clock, unit: str, zone: str | None
) -> None:
    moments = pa.array([at(10), at(11)], TIMESTAMP).cast(pa.timestamp("us", zone)).cast(pa.timestamp(unit, zone))
    joined = warehouse.join(pa.table({"user_id": ["7", "7"], "ts": moments}), item=None).to_arrow()
    assert joined["has_user_augment"].to_pylist() == [False, True]
    assert joined.schema.field("ts").type == moments.type


@pytest.mark.parametrize(
    "ids",
    [pa.array([7]), pa.array([7], pa.uint8()), pa.array(["7"], pa.large_string()), pa.array(["7"]).dictionary_encode()],
)
def test_ids_of_any_sound_type_match_and_keep_it(warehouse: Warehouse, at: Clock, ids: pa.Array) -> None:
    joined = warehouse.join(pa.table({"user_id": ids, "ts": [at(11)]}), item=None).to_arrow()
    assert joined["has_user_augment"].to_pylist() == [True]
    assert joined.schema.field("user_id").type == ids.type


def test_columns_of_other_names_are_told_to_the_join(warehouse: Warehouse, at: Clock) -> None:
    shown = pa.table({"uid": ["7"], "movie": ["i"], "shown_at": [at(11)]})
    joined = warehouse.join(shown, user="uid", item="movie", ts="shown_at").to_arrow()
    assert joined["has_user_augment"].to_pylist() == joined["has_item_augment"].to_pylist() == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": None}, "no column `user_id`; they have item_id, ts"),
        ({"ts": None}, "no column `ts`"),
        ({"user_id": pa.array([7.0])}, "`user_id` of the impressions is double, .* 1.0 is not the id `1`"),
        ({"user_id": pa.array([True])}, "`user_id` of the impressions is bool"),
        ({"ts": pa.array([1577836811])}, "`ts` of the impressions is int64, not a timestamp.*to_datetime"),
        ({"ts": pa.array(["2020-01-01"])}, "`ts` of the impressions is string, not a timestamp"),
        ({"has_item_augment": pa.array([True])}, "already have a column `has_item_augment`"),
        ({"user_rung": pa.array(["own"])}, "already have a column `user_rung`"),
    ],
)
def test_impressions_that_cannot_be_joined_are_refused_by_name(
    warehouse: Warehouse, at: Clock, changes: dict[str, pa.Array | None], message: str
) -> None:
    columns = {"user_id": pa.array(["7"]), "item_id": pa.array(["i"]), "ts": pa.array([at(11)]), **changes}
    shown = pa.table({name: column for name, column in columns.items() if column is not None})
    with pytest.raises(UsageError, match=message):
        warehouse.join(shown)


def test_vectors_of_another_length_than_the_manifest_says_are_refused(feature_rows: Build, at: Clock) -> None:
    features = feature_rows("user_features", [{"user_id": "7", "valid_from": at(1), "augment": [1.0, 2.0]}])
    shown = pa.table({"user_id": ["7"], "ts": [at(2)]})
    with pytest.raises(CorruptWarehouse, match="1 vectors of 2 numbers in all, and not 3 in each"):
        asof_join(shown, features, entity="user_id", on="user_id", ts="ts", dim=3)


def test_a_damaged_feature_file_is_named(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    path = tmp_path / "rows.parquet"
    store.write_table(path, feature_rows("user_features", [{"user_id": "7", "valid_from": at(1)}]))
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    shown = pa.table({"user_id": ["7"], "ts": [at(2)]})
    with pytest.raises(CorruptWarehouse, match=r"rows\.parquet"):
        asof_join(shown, [path], entity="user_id", on="user_id", ts="ts", dim=2)
