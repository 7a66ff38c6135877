import gzip
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from warehouse.errors import InputError
from warehouse.sources import InputsConfig, Part, SourceConfig, bad_lines, fingerprint, parts, scratch_database

NAMES = ["user_id", "item_id", "ts"]


def read(source: SourceConfig, base: Path, skip: tuple = ()) -> list[tuple]:
    """All rows of `source`, part by part."""
    rows = []
    with scratch_database(threads=1) as con:
        for part in parts(con, source, base, NAMES, skip):
            rows += con.execute(f"SELECT * FROM {part.relation}").fetchall()
    return rows


def make_database(path: Path, *statements: str) -> None:
    with duckdb.connect(str(path)) as con:
        for statement in statements:
            con.execute(statement)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "none of them"),
        ({"path": "a.csv", "database": "b.duckdb", "table": "t"}, "b.duckdb"),
        ({"path": "a.csv", "table": "orders"}, "orders"),
        ({"path": "a.csv", "query": "SELECT 42"}, "SELECT 42"),
        ({"database": "b.duckdb"}, "b.duckdb"),
        ({"database": "b.duckdb", "table": "orders", "query": "SELECT 42"}, "SELECT 42"),
        ({"table": "orders"}, "orders"),
        ({"path": " "}, "path"),
        ({"path": "a.csv", "columns": {"user_id": "who", "item_id": "who"}}, "who"),
        ({"path": "a.csv", "timestamp_unit": "ns"}, "ns"),
        ({"path": "a.csv", "pathh": "b.csv"}, "pathh"),
    ],
)
def test_a_wrong_combination_fails_when_the_config_is_built_and_names_the_value(given: dict, named: str) -> None:
    with pytest.raises(ValidationError) as failure:
        SourceConfig(**given)
    assert named in str(failure.value)


def test_mapping_a_behaviour_column_that_the_contract_does_not_have_is_refused() -> None:
    with pytest.raises(ValidationError, match="timestamp"):
        InputsConfig(
            behaviours=SourceConfig(path="a.csv", columns={"timestamp": "t"}), items=SourceConfig(path="b.csv")
        )


def test_files_behind_a_glob_are_read_in_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.csv").write_text(f"user_id,item_id,ts\n{name},i,2020-01-01\n")
    assert [row[0] for row in read(SourceConfig(path="*.csv"), tmp_path)] == ["a", "b", "c"]


def test_a_file_whose_name_looks_like_a_pattern_is_read_as_a_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "part[1].parquet")
    (tmp_path / "part[2].csv").write_text("user_id\nv\n")
    assert read(SourceConfig(path="part[1].parquet"), tmp_path) == [("u",)]
    assert read(SourceConfig(path="part[2].csv"), tmp_path) == [("v",)]


def test_csv_fields_stay_text_so_ids_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id,ts\n007,1e3,1\n")
    assert read(SourceConfig(path="a.csv"), tmp_path) == [("007", "1e3", "1")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_from_the_header(tmp_path: Path, delimiter: str) -> None:
    lines = [["user_id", "item_id", "ts"], ["u", "a,b" if delimiter != "," else "a;b", "1"]]
    (tmp_path / "a.csv").write_text("".join(delimiter.join(line) + "\r\n" for line in lines))
    assert read(SourceConfig(path="a.csv"), tmp_path) == [tuple(lines[1])]


def test_compressed_csv_with_a_byte_order_mark_and_quoted_line_breaks_is_read(tmp_path: Path) -> None:
    text = '\ufeffuser_id,item_id,ts\nu,"a ""b""\nc",1\n'
    (tmp_path / "a.CSV.gz").write_bytes(gzip.compress(text.encode()))
    assert read(SourceConfig(path="a.CSV.gz"), tmp_path) == [("u", 'a "b"\nc', "1")]


def test_lines_that_do_not_parse_are_told_once_each_with_their_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"user_id,item_id,ts\nu,i,1\nu\nu,i,1,2\nu,\xe9,1\nv,i,2\n")
    with scratch_database(threads=1) as con:
        [part] = parts(con, SourceConfig(path="a.csv"), tmp_path, NAMES)
        assert len(con.execute(f"SELECT * FROM {part.relation}").fetchall()) == 2
        assert [(bad.line, bad.text) for bad in bad_lines(con, part)][:2] == [(3, "u"), (4, "u,i,1,2")]
        assert [bad.line for bad in bad_lines(con, part)] == [3, 4, 5]


def test_a_quote_that_swallows_the_lines_after_it_refuses_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('user_id,item_id,ts\nu,i,1\nv,"i,1\n' + "w,i,1\n" * 50)
    with scratch_database(threads=1) as con:
        [part] = parts(con, SourceConfig(path="a.csv"), tmp_path, NAMES)
        con.execute(f"SELECT * FROM {part.relation}").fetchall()
        with pytest.raises(InputError, match=r"a\.csv, line 3"):
            bad_lines(con, part)


def test_tables_views_schemas_and_queries_of_a_database_are_read(tmp_path: Path) -> None:
    make_database(
        tmp_path / "shop.duckdb",
        "CREATE TABLE events AS SELECT 'u' AS user_id",
        "CREATE VIEW seen AS SELECT 'v' AS user_id",
        'CREATE SCHEMA raw; CREATE TABLE raw."odd ""name" AS SELECT \'w\' AS user_id',
    )
    for place, expected in [
        ({"table": "events"}, "u"),
        ({"table": "seen"}, "v"),
        ({"table": 'raw.odd "name'}, "w"),
        ({"query": "SELECT user_id || '!' AS user_id FROM shop.main.events; "}, "u!"),
        ({"query": "WITH a AS (FROM events) SELECT * FROM a -- last"}, "u"),
    ]:
        assert read(SourceConfig(database="shop.duckdb", **place), tmp_path) == [(expected,)]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ({"path": "absent.parquet"}, "absent.parquet"),
        ({"path": "none-*.csv"}, "none-*.csv"),
        ({"path": "folder"}, "folder"),
        ({"path": "notes.txt"}, "notes.txt"),
        ({"path": "empty.csv"}, "empty.csv"),
        ({"path": "headless.csv"}, "no header"),
        ({"path": "latin.csv"}, "latin.csv"),
        ({"path": "twice.csv"}, "names a column twice"),
        ({"path": "broken.csv.gz"}, "broken.csv.gz"),
        ({"path": "broken.parquet"}, "broken.parquet"),
        ({"path": "torn.parquet"}, "torn.parquet"),
        ({"database": "absent.duckdb", "table": "t"}, "absent.duckdb"),
        ({"database": "folder", "table": "t"}, "folder"),
        ({"database": "notes.txt", "table": "t"}, "notes.txt"),
        ({"database": "shop.duckdb", "table": "orders"}, "`orders`; its tables and views: events"),
        ({"database": "shop.duckdb", "query": "SELEC * FROM events"}, "`query` on"),
        ({"database": "shop.duckdb", "query": "SELECT nothing FROM events"}, "nothing"),
        ({"database": "shop.duckdb", "query": "DROP TABLE events"}, "DROP TABLE events"),
        ({"database": "shop.duckdb", "query": "SELECT 1; DROP TABLE events"}, "DROP TABLE events"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, source: dict, named: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("not a table\n" * 1000)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "headless.csv").write_text("1,17,978300760\n2,18,978300761\n")
    (tmp_path / "latin.csv").write_bytes("user_id,prénom\nu,x\n".encode("latin-1"))
    (tmp_path / "twice.csv").write_text("user_id,ts,TS\nu,1,2\n")
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(b"user_id,item_id,ts\nu,i,1\n")[:-12])
    (tmp_path / "broken.parquet").write_text("not parquet\n" * 100)
    pq.write_table(pa.table({"user_id": [str(i) for i in range(10_000)]}), tmp_path / "torn.parquet")
    content = bytearray((tmp_path / "torn.parquet").read_bytes())
    content[1000:3000] = bytes(2000)
    (tmp_path / "torn.parquet").write_bytes(content)
    make_database(tmp_path / "shop.duckdb", "CREATE TABLE events AS SELECT 'u' AS user_id")

    with pytest.raises(InputError) as failure:
        consume(SourceConfig(**source), tmp_path)
    assert named in str(failure.value)
    assert failure.value.exit_code == 2


def consume(source: SourceConfig, base: Path) -> None:
    """Reads everything the way the ingest does, so that errors in the middle of a file are met too."""
    from warehouse.sources import reading

    with scratch_database(threads=1) as con:
        for part in parts(con, source, base, NAMES):
            with reading(part.name):
                con.execute(f"CREATE OR REPLACE TABLE lorestream_scratch.main.t AS SELECT * FROM {part.relation}")


def test_only_new_and_changed_files_are_read_again(tmp_path: Path) -> None:
    source = SourceConfig(path="*.csv")
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"user_id,item_id,ts\n{name},i,1\n")
    seen = tuple(fingerprint(source, tmp_path))
    assert [Path(file.path).name for file in seen] == ["a.csv", "b.csv"]
    assert read(source, tmp_path, seen) == []
    (tmp_path / "b.csv").write_text("user_id,item_id,ts\nlonger,i,1\n")
    (tmp_path / "c.csv").write_text("user_id,item_id,ts\nc,i,1\n")
    assert [row[0] for row in read(source, tmp_path, seen)] == ["longer", "c"]
    # The same file under another mapping is another read.
    mapped = SourceConfig(path="a.csv", columns={"user_id": "item_id"})
    assert len(read(mapped, tmp_path, seen)) == 1


def test_a_stored_table_is_skipped_until_its_file_changes_but_views_and_queries_never_are(tmp_path: Path) -> None:
    (tmp_path / "lake.csv").write_text("user_id\nu\n")
    make_database(
        tmp_path / "shop.duckdb",
        "CREATE TABLE events AS SELECT 'u' AS user_id",
        f"CREATE VIEW lake AS SELECT * FROM read_csv('{tmp_path / 'lake.csv'}')",
    )
    table = SourceConfig(database="shop.duckdb", table="events")
    seen = tuple(fingerprint(table, tmp_path))
    assert read(table, tmp_path, seen) == []
    view = SourceConfig(database="shop.duckdb", table="lake")
    assert len(read(view, tmp_path, tuple(fingerprint(view, tmp_path)))) == 1
    query = SourceConfig(database="shop.duckdb", query="FROM events")
    assert len(read(query, tmp_path, tuple(fingerprint(query, tmp_path)))) == 1
    make_database(tmp_path / "shop.duckdb", "INSERT INTO events SELECT 'v' || i FROM range(100000) t(i)")
    assert len(read(table, tmp_path, seen)) == 100_001


def test_a_part_carries_the_types_of_its_own_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "b.parquet")
    with scratch_database(threads=1) as con:
        found: list[Part] = list(parts(con, SourceConfig(path="*.parquet"), tmp_path, NAMES))
    assert [dict(part.columns) for part in found] == [{"user_id": "BIGINT"}, {"user_id": "VARCHAR"}]
