import os
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pytest

from warehouse import store
from warehouse.errors import CorruptWarehouse, UsageError

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("vector", pa.list_(pa.float32()))])
TABLE = pa.table({"id": ["a", "b"], "vector": [[1.0, 2.0], None]}, schema=SCHEMA)


def test_a_written_table_reads_back_equal_and_is_described(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.parquet"
    ref = store.write_table(path, TABLE)
    assert store.read_table([path], SCHEMA).equals(TABLE)
    content = path.read_bytes()
    assert ref == store.FileRef(str(path), 2, len(content), blake2b(content, digest_size=16).hexdigest())


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    refs = [store.write_table(tmp_path / name, TABLE) for name in ("a.parquet", "b.parquet")]
    assert refs[0].digest == refs[1].digest


def test_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    paths = [tmp_path / "b.parquet", tmp_path / "a.parquet"]
    for path in paths:
        store.write_table(path, TABLE.set_column(0, SCHEMA.field("id"), [[path.stem] * 2]))
    assert store.read_table(paths, SCHEMA, columns=["id"]).to_pydict() == {"id": ["b", "b", "a", "a"]}


@pytest.mark.parametrize("group_rows", [1, 3, 100])
def test_a_table_is_read_whole_however_many_row_groups_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    lists = [[float(n)] * (n % 3) if n % 5 else None for n in range(50)]
    table = pa.table({"id": [f"u{n}" for n in range(50)], "vector": pa.array(lists, pa.list_(pa.float32()))})
    monkeypatch.setattr(store, "ROW_GROUP_ROWS", group_rows)
    store.write_table(tmp_path / "rows.parquet", table)
    monkeypatch.setattr(store, "ROW_GROUP_ROWS", 7)
    assert store.read_table([tmp_path / "rows.parquet"], table.schema).equals(table)
    assert store.read_table([tmp_path / "rows.parquet"], None, ["vector"]).equals(table.select(["vector"]))


def test_no_file_gives_an_empty_table_of_the_schema() -> None:
    assert store.read_table([], SCHEMA).equals(SCHEMA.empty_table())
    assert store.read_table([], SCHEMA, columns=["vector"]).schema == pa.schema([SCHEMA.field("vector")])


def test_without_a_schema_the_columns_are_the_union_of_the_files(tmp_path: Path) -> None:
    store.write_table(tmp_path / "a.parquet", pa.table({"id": ["a"], "year": [1999]}))
    store.write_table(tmp_path / "b.parquet", pa.table({"id": ["b"], "genre": ["noir"]}))
    found = store.read_table([tmp_path / "a.parquet", tmp_path / "b.parquet"], None)
    assert found.to_pydict() == {"id": ["a", "b"], "year": [1999, None], "genre": [None, "noir"]}


def test_a_failing_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    store.write_table(path, TABLE)

    def write_half() -> None:
        with store.TableWriter(path, SCHEMA) as writer:
            writer.write(TABLE.slice(0, 1))
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_half()
    assert store.read_table([path], SCHEMA).equals(TABLE)
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_writer_of_batches_shows_nothing_before_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with store.TableWriter(path, SCHEMA) as writer:
        for batch in TABLE.to_batches(max_chunksize=1):
            writer.write(batch)
        assert not path.exists()
        assert not list(tmp_path.glob("*.parquet"))
    assert store.read_table([path], SCHEMA).equals(TABLE)
    assert writer.ref is not None
    assert writer.ref.rows == 2


def test_a_missing_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(CorruptWarehouse, match=r"gone\.parquet is missing.*Restore it"):
        store.read_table([tmp_path / "gone.parquet"], SCHEMA)


@pytest.mark.parametrize("content", [b"", b"not parquet at all", None], ids=["empty", "garbage", "cut short"])
def test_a_damaged_file_is_named_with_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "t.parquet"
    store.write_table(path, TABLE)
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    with pytest.raises(CorruptWarehouse, match=r"t\.parquet cannot be read as Parquet.*Restore it"):
        store.read_table([path], SCHEMA)


def test_a_column_of_another_type_is_named(tmp_path: Path) -> None:
    store.write_table(tmp_path / "t.parquet", pa.table({"id": [1], "vector": [[1.0]]}))
    with pytest.raises(CorruptWarehouse, match=r"`id` of .* is int64, the contract says string"):
        store.read_table([tmp_path / "t.parquet"], SCHEMA)
    with pytest.raises(CorruptWarehouse, match=r"`other` of .* is absent"):
        store.read_table([tmp_path / "t.parquet"], pa.schema([("other", pa.string())]))


def test_creating_a_file_that_exists_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    store.create(path, b"first")
    with pytest.raises(FileExistsError):
        store.create(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["1.json"]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    store.write_json(path, {"schema_version": 1, "value": "old"})
    with pytest.raises(TypeError):
        store.write_json(path, {"schema_version": 1, "value": object()})
    assert store.read_json(path, "manifest", 1)["value"] == "old"
    assert os.listdir(tmp_path) == ["m.json"]


def test_json_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store.write_json(tmp_path / "m.json", {"schema_version": 3})
    with pytest.raises(UsageError, match=r"schema version 3, .* up to 2\. Upgrade Lorestream"):
        store.read_json(tmp_path / "m.json", "manifest", 2)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.json").write_bytes(content)
    with pytest.raises(CorruptWarehouse, match=r"The manifest .*m\.json .*backup"):
        store.read_json(tmp_path / "m.json", "manifest", 1)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    store.write_table(tmp_path / "a" / "t.parquet", TABLE)
    leftover = tmp_path / "a" / f"{store.TEMPORARY_PREFIX}t.parquet-99"
    leftover.write_bytes(b"half")
    assert store.remove_temporary(tmp_path) == [leftover]
    assert os.listdir(tmp_path / "a") == ["t.parquet"]
