"""Rewritten files against lists in memory: rows dropped and edited in place, everything else as it was."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import rewrite as module
from warehouse.errors import CorruptWarehouse
from warehouse.rewrite import rewrite, rows_where
from warehouse.sql import connect
from warehouse.store import read_table, write_table

SCHEMA = pa.schema([("id", pa.string()), ("items", pa.list_(pa.string()))], metadata={b"lorestream.buckets": b"4"})

ids = st.sampled_from(["a", "b", "ü", ""])
tables = st.lists(st.tuples(ids, st.lists(ids, max_size=3)), max_size=12)


def stored(folder: str, name: str, rows: list[tuple[str, list[str]]]) -> Path:
    path = Path(folder, name)
    columns = [[row[n] for row in rows] for n in range(2)]
    write_table(path, pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA))
    return path


def rows_of(path: Path) -> list[tuple[str, list[str]]]:
    return [(row["id"], row["items"]) for row in read_table([path], SCHEMA).to_pylist()]


@settings(deadline=None, max_examples=50)
@given(first=tables, second=tables, wanted=ids, batch=st.integers(1, 5), in_place=st.booleans())
def test_rows_that_meet_a_condition_are_found_and_dropped_and_no_other(
    first: list[tuple[str, list[str]]], second: list[tuple[str, list[str]]], wanted: str, batch: int, in_place: bool
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, connect() as con:
        patch.setattr(module, "ROW_GROUP_ROWS", batch)
        files = {stored(folder, "1.parquet", first): first, stored(folder, "2.parquet", second): second}
        con.execute("CREATE TEMP TABLE wanted AS SELECT ? AS id", [wanted])
        found = rows_where(con, list(files), "id IN (SELECT id FROM wanted)")
        for path, rows in files.items():
            places = [n for n, (name, _) in enumerate(rows) if name == wanted]
            assert found.get(path, np.zeros(0)).tolist() == places
            left = [row for n, row in enumerate(rows) if n not in places]
            out = path if in_place else Path(folder, f"out-{path.name}")
            ref = rewrite(path, out, np.array(places, np.int64))
            assert (ref is None) == (not left) == (not out.exists())
            if ref is not None:
                assert (rows_of(out), ref.rows) == (left, len(left))
                assert module.pq.read_schema(out).metadata[b"lorestream.buckets"] == b"4"


@settings(deadline=None, max_examples=50)
@given(rows=tables, places=st.sets(st.integers(0, 11)), dropped=st.sets(st.integers(0, 11)), batch=st.integers(1, 5))
def test_edited_rows_stand_in_the_places_of_the_old_ones(
    rows: list[tuple[str, list[str]]], places: set[int], dropped: set[int], batch: int
) -> None:
    """`dropped` are ids of rows that an edit drops; the others lose their items."""
    rows = [(str(n), items) for n, (_, items) in enumerate(rows)]
    places = {place for place in places if place < len(rows)}

    def edit(table: pa.Table) -> tuple[pa.Table, np.ndarray]:
        assert {int(name) for name in table["id"].to_pylist()} <= places
        stays = np.array([int(name) not in dropped for name in table["id"].to_pylist()], bool)
        return table.set_column(1, SCHEMA.field(1), pa.array([[]] * len(table), SCHEMA.field(1).type)), stays

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_GROUP_ROWS", batch)
        path, out = stored(folder, "1.parquet", rows), Path(folder, "out.parquet")
        ref = rewrite(path, out, np.array(sorted(places), np.int64), edit)
        kept = [(name, [] if int(name) in places else i) for name, i in rows if int(name) not in places & dropped]
        assert (rows_of(out) if ref else []) == kept


def test_a_damaged_file_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = stored(str(tmp_path), "1.parquet", [("a", ["b"])] * 100)
    path.write_bytes(content := path.read_bytes()[:-50])
    with connect() as con, pytest.raises(CorruptWarehouse, match=r"1\.parquet"):
        rows_where(con, [path], "id = 'a'")
    with pytest.raises(CorruptWarehouse, match=r"1\.parquet"):
        rewrite(path, path, np.zeros(1, np.int64))
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["1.parquet"]
