"""Damaged files behind DuckDB views are named, whatever DuckDB says about them and whenever. Connections share
a database and see nothing of each other."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from warehouse.errors import CorruptWarehouse
from warehouse.sql import connect, parquet_view
from warehouse.store import write_table

SCHEMA = pa.schema([("key", pa.string()), ("number", pa.int64())])


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def scrambled(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    file.write_bytes(content)


def read(files: list[Path], streamed: bool = False, query: str = "SELECT * FROM rows") -> None:
    with connect() as con:
        parquet_view(con, "rows", files, SCHEMA)
        if streamed:
            for _ in con.sql(query).to_arrow_reader(1000):
                pass
        else:
            con.sql(query).to_arrow_table()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file in files:
        keys = [f"{file.name} {number * 7919 % 104729}" for number in range(20_000)]
        write_table(file, pa.table({"key": keys, "number": list(range(20_000))}, SCHEMA))
    return files


@pytest.mark.parametrize("damage", [cut_short, scrambled, Path.unlink, lambda file: file.write_bytes(b"")])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_damaged_file_is_named(
    files: list[Path], damage: Callable[[Path], object], place: int, streamed: bool
) -> None:
    damage(files[place])
    with pytest.raises(CorruptWarehouse, match=rf"{files[place]} (is missing|cannot be read).*from a backup"):
        read(files, streamed)


def test_other_errors_pass_as_they_are(files: list[Path]) -> None:
    with pytest.raises(duckdb.BinderException):
        read(files, query="SELECT colour FROM rows")


def test_connections_at_once_see_their_own_tables_and_settings_only() -> None:
    with connect() as one, connect() as other:
        for number, con in enumerate((one, other)):
            con.register("given", pa.table({"number": [number]}))
            con.execute("CREATE TEMP TABLE made AS FROM given")
            parquet_view(con, "viewed", [], SCHEMA)
        one.execute("SET TimeZone = 'Europe/Berlin'")
        assert one.sql("FROM made JOIN given USING (number)").fetchall() == [(0,)]
        assert other.sql("FROM made JOIN given USING (number)").fetchall() == [(1,)]
        assert other.sql("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]
    with connect() as later, pytest.raises(duckdb.CatalogException):
        later.sql("FROM made")


def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    for number in range(3):
        write_table(file, pa.table({"key": ["a"], "number": [number]}, SCHEMA))
        with connect() as con:
            parquet_view(con, "rows", [file], SCHEMA)
            assert con.sql("SELECT number FROM rows").fetchall() == [(number,)]


def _sum_of_thousands() -> None:
    # Large enough for several threads.
    with connect() as con:
        assert con.sql("SELECT sum(i) FROM range(3_000_000) AS r(i)").fetchall() == [(4_499_998_500_000,)]


def test_a_forked_process_queries_after_its_parent_has() -> None:
    _sum_of_thousands()
    child = multiprocessing.get_context("fork").Process(target=_sum_of_thousands)
    child.start()
    child.join(60)
    stuck = child.is_alive()
    child.kill()
    assert not stuck
    assert child.exitcode == 0
    _sum_of_thousands()
