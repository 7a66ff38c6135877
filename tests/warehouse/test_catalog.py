"""`features.duckdb` as someone uses it who has DuckDB and nothing of ours."""

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from warehouse.catalog import CATALOG_NAME, rebuild
from warehouse.manifest import publish, rollback
from warehouse.schemas import FEATURES
from warehouse.sql import quote

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]

VIEWS = ["user_features", "item_features", "user_features_latest", "item_features_latest"]


def publish_user(root: Path, feature_rows: Build, at: Clock, *rows: tuple[int, int, int, float]) -> str:
    """Publish rows (valid_from, created_at, partition_no, value) of the user `u`."""
    made = [
        {"user_id": "u", "valid_from": at(v), "created_at": at(c), "partition_no": p, "augment": [x, x]}
        for v, c, p, x in rows
    ]
    table = feature_rows("user_features", made)
    return publish(root, {"user_features": table}, replace=False, now=at(0), lineage={}).snapshot_id


def query(root: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as con:
        con.execute(f"ATTACH {quote(str(root / CATALOG_NAME))} AS features (READ_ONLY)")
        return con.sql(sql).fetchall()


def test_latest_is_the_newest_row_of_each_entity(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    # Late knowledge of an old moment (100) does not count; at second 5, later creation wins, then the partition.
    publish_user(tmp_path, feature_rows, at, (5, 1, 0, 1.0), (3, 100, 0, 2.0), (5, 2, 0, 3.0), (5, 2, 1, 4.0))
    assert query(tmp_path, "SELECT user_id, augment FROM features.lorestream.user_features_latest") == [
        ("u", [4.0, 4.0])
    ]
    assert query(tmp_path, "SELECT count(*) FROM features.lorestream.user_features") == [(4,)]


def test_the_catalogue_is_read_from_any_folder_without_our_packages(
    tmp_path: Path, feature_rows: Build, at: Clock
) -> None:
    root, elsewhere = tmp_path / "it's a warehouse", tmp_path / "elsewhere"
    elsewhere.mkdir()
    publish_user(root, feature_rows, at, (1, 1, 0, 1.0))
    script = """
import duckdb, sys
path = sys.argv[1]
with duckdb.connect() as con:
    con.execute(f"ATTACH '{path.replace(chr(39), chr(39) * 2)}' (READ_ONLY)")
    print(con.sql("SELECT augment FROM features.lorestream.user_features_latest").fetchall())
    con.execute("USE features")
    print(con.sql("SELECT augment FROM lorestream.user_features_latest").fetchall())
with duckdb.connect() as con:
    con.execute(f"ATTACH '{path.replace(chr(39), chr(39) * 2)}' AS lorestream (READ_ONLY)")
    print(con.sql("SELECT augment FROM lorestream.user_features_latest").fetchall())
    print(con.sql("SELECT lorestream.user_augment_at('u', TIMESTAMP '2021-01-01')").fetchall())
with duckdb.connect(path, read_only=True) as con:
    print(con.sql("SELECT augment FROM lorestream.user_features_latest").fetchall())
    con.execute("CREATE TEMP TABLE shown AS SELECT 'u' AS user_id, TIMESTAMP '2021-01-01' AS ts")
    print(con.sql("SELECT user_augment FROM lorestream.user_features_asof('shown')").fetchall())
"""
    command = [sys.executable, "-I", "-c", script, str(root / CATALOG_NAME)]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[([1.0, 1.0],)]"] * 6, done.stderr


def test_tables_without_rows_have_views_with_the_right_columns(tmp_path: Path, at: Clock) -> None:
    publish(tmp_path, {}, replace=False, now=at(0), lineage={})
    with duckdb.connect(str(tmp_path / CATALOG_NAME), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        for name in VIEWS:
            found = con.sql(f"SELECT * FROM lorestream.{name}").to_arrow_table()
            assert found.num_rows == 0
            wanted = FEATURES[name.removesuffix("_latest")]
            assert found.schema.names == wanted.names
            assert found.schema.types == wanted.types
        con.execute("CREATE TEMP TABLE shown AS SELECT 'u' AS user_id, 'i' AS item_id, TIMESTAMP '2020-01-01' AS ts")
        joined = con.sql("SELECT has_user_augment, item_augment FROM lorestream.features_asof('shown')").fetchall()
        assert joined == [(False, None)]


def test_one_table_may_be_empty_beside_one_that_is_not(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    publish_user(tmp_path, feature_rows, at, (1, 1, 0, 1.0))
    assert query(tmp_path, "SELECT count(*) FROM features.lorestream.item_features_latest") == [(0,)]


def test_macros_take_a_table_a_view_or_a_common_table_expression(
    tmp_path: Path, feature_rows: Build, at: Clock
) -> None:
    publish_user(tmp_path, feature_rows, at, (1, 1, 0, 1.0))
    with duckdb.connect() as con:
        con.execute(f"ATTACH {quote(str(tmp_path / CATALOG_NAME))} AS features (READ_ONLY)")
        con.execute("CREATE TABLE shown AS SELECT 'u' AS user_id, TIMESTAMP '2021-01-01' AS ts, 1 AS label")
        con.execute("CREATE VIEW shown_view AS SELECT * FROM shown")
        for source in ("'shown'", "'main.shown'", "'shown_view'", "'cte'"):
            joined = f"SELECT label, user_augment FROM features.lorestream.user_features_asof({source})"
            assert con.sql(f"WITH cte AS (FROM shown) {joined}").fetchall() == [(1, [1.0, 1.0])]
        con.execute("CREATE TABLE numbered AS SELECT 'u' AS user_id, 1609459200 AS ts")
        with pytest.raises(duckdb.BinderException, match="epoch_us"):
            con.sql("FROM features.lorestream.user_features_asof('numbered')")


def test_the_catalogue_follows_the_pointer(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    first = publish_user(tmp_path, feature_rows, at, (1, 1, 0, 1.0))
    second = publish_user(tmp_path, feature_rows, at, (2, 1, 1, 2.0))
    current = "SELECT snapshot_id FROM features.lorestream.current_snapshot"
    latest = "SELECT augment[1] FROM features.lorestream.user_features_latest"
    assert query(tmp_path, current) == [(second,)]
    assert query(tmp_path, latest) == [(2.0,)]
    rollback(tmp_path, first)
    assert query(tmp_path, current) == [(first,)]
    assert query(tmp_path, latest) == [(1.0,)]


def test_a_reader_does_not_hold_up_the_writer_and_keeps_what_it_opened(
    tmp_path: Path, feature_rows: Build, at: Clock
) -> None:
    publish_user(tmp_path, feature_rows, at, (1, 1, 0, 1.0))
    script = """
import duckdb, sys
with duckdb.connect(sys.argv[1]) as con:                            # the default, which locks the file for writing
    for _ in range(2):
        print(con.sql("SELECT count(*) FROM lorestream.user_features").fetchall(), flush=True)
        sys.stdin.readline()
"""
    command = [sys.executable, "-c", script, str(tmp_path / CATALOG_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "[(1,)]\n"
        publish_user(tmp_path, feature_rows, at, (2, 1, 1, 2.0))
        output, _ = reader.communicate("\n\n")
        assert output == "[(1,)]\n"
    assert query(tmp_path, "SELECT count(*) FROM features.lorestream.user_features") == [(2,)]


def test_a_moved_warehouse_is_readable_after_a_rebuild(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    publish_user(old, feature_rows, at, (1, 1, 0, 1.0))
    old.rename(new)
    count = "SELECT count(*) FROM features.lorestream.user_features"
    with pytest.raises(duckdb.IOException):
        query(new, count)
    assert rebuild(new) == new / CATALOG_NAME
    assert query(new, count) == [(1,)]


def test_only_finished_files_are_left(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    publish_user(tmp_path, feature_rows, at, (1, 1, 0, 1.0))
    (tmp_path / f"{CATALOG_NAME}.wal").write_bytes(b"left by a stranger")
    rebuild(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", CATALOG_NAME]
