"""Files that exist whole or not at all: Parquet tables and JSON, written under a temporary name and renamed.

Readers meet only finished names: a temporary file starts with `.tmp-` and never ends in `.parquet` or `.json`.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.keys import DIGEST_BYTES
from warehouse.schemas import SEGMENTED

TEMPORARY_PREFIX = ".tmp-"

# Readers skip row groups by their statistics; 128 Ki rows of 32 floats are about 16 MB, a unit worth skipping.
ROW_GROUP_ROWS = 128 * 1024


@dataclass(frozen=True)
class FileRef:
    """A written file: its path (as given, or relative to the warehouse), rows, size and BLAKE2b digest.

    `contract` is the version of the columns in files of public tables (`schemas.FEATURES_CONTRACT`), 0 elsewhere.
    """

    path: str
    rows: int
    bytes: int
    digest: str
    contract: int = 0


class TableWriter:
    """A context manager that writes one Parquet file batch by batch; the file appears when the block ends well.

    `ref` is set after the block. A block left by an exception leaves no file. No batch at all gives an empty table.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.ref: FileRef | None = None
        self._rows = 0
        self._temporary = _temporary_name(path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._temporary, self.schema, **_encodings(self.schema))
        return self

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append `rows`, whose schema must equal the writer's (metadata aside)."""
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._writer.write_table(table.cast(self.schema), row_group_size=ROW_GROUP_ROWS)
        self._rows += table.num_rows

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._writer.close()
            if kind is None:
                self.ref = _publish_file(self._temporary, self.path, self._rows)
        finally:
            self._temporary.unlink(missing_ok=True)


def _encodings(schema: pa.Schema) -> dict[str, object]:
    """Dictionaries for texts alone, statistics for what is no list alone: a reader gains nothing from the others.

    Embeddings, which are the lists of fixed size, stay uncompressed: no two are alike, so zstd would save 6 % of their
    space and take a third of the time to read them.
    """
    texts, flat, codecs = [], [], {}
    for field in schema:
        nested = pa.types.is_nested(field.type)
        leaf = f"{field.name}.list.element" if nested else field.name
        codecs[leaf] = "none" if pa.types.is_fixed_size_list(field.type) else "zstd"
        if pa.types.is_string(field.type.value_type if nested else field.type):
            texts.append(leaf)
        if not nested:
            flat.append(leaf)
    return {"use_dictionary": texts, "write_statistics": flat, "compression": codecs}


def write_table(path: Path, table: pa.Table) -> FileRef:
    """The written file: `table` as zstd Parquet at `path`, durable and complete once this returns."""
    with TableWriter(path, table.schema) as writer:
        writer.write(table)
    assert writer.ref is not None
    return writer.ref


def write_json(path: Path, value: object) -> None:
    """Replace `path` by `value` as indented JSON in one step: a reader sees the old bytes or the new ones."""
    with replacing(path) as temporary:
        temporary.write_bytes(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """`value` as JSON that people can read and diff: indented, with a final newline."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what the block wrote there becomes `path` durably when it ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def create(path: Path, content: bytes) -> None:
    """Write `content` durably to `path`, which must not exist.

    Raises FileExistsError when it does, even if another process made it in between: of two makers one wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        # A hard link, unlike a rename, refuses to overwrite, and the name appears with its whole content.
        os.link(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, what: str, version: int) -> dict[str, object]:
    """The JSON object at `path`, written by this version of Lorestream or an older one.

    Raises CorruptWarehouse for a file that cannot be read or is no such object, UsageError when `schema_version` is
    above `version`.
    """
    try:
        value = orjson.loads(path.read_bytes())
    except OSError as error:
        raise CorruptWarehouse(
            f"The {what} {path} cannot be read ({error.strerror}). Restore it from a backup, or check its permissions."
        ) from error
    except orjson.JSONDecodeError as error:
        raise CorruptWarehouse(f"The {what} {path} is not JSON ({error}). Restore this file from a backup.") from error
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int):
        raise CorruptWarehouse(f"The {what} {path} has no `schema_version`. Restore this file from a backup.")
    if value["schema_version"] > version:
        raise UsageError(
            f"The {what} {path} has schema version {value['schema_version']}, this Lorestream knows versions up to "
            f"{version}. Upgrade Lorestream, or use the version that wrote the warehouse."
        )
    return value


def read_table(
    paths: Sequence[Path], schema: pa.Schema | None, columns: Sequence[str] | None = None, *, grown: bool = False
) -> pa.Table:
    """The rows of `paths`, in that order, with exactly the columns of `schema` (or those of them in `columns`).

    With `schema` None the columns are the union of the files' own (absent ones null); no path gives no column.
    `grown` says that the schema has gained columns: files of an older Lorestream may lack some, which are null then.
    Raises CorruptWarehouse for a file that is missing, unreadable, or without a column of `schema` in its type.
    """
    tables = []
    for path in paths:
        with _opened(path) as file:
            names = columns if columns is not None else (file.schema_arrow if schema is None else schema).names
            if schema is None:
                tables.append(_read(file, names))
            else:
                wanted = pa.schema([schema.field(name) for name in names])
                found = file.schema_arrow.names
                late = [field for field in wanted if grown and field.nullable and field.name not in found]
                _check_types(path, pa.schema([field for field in wanted if field not in late]), file.schema_arrow)
                rows = _read(file, names)
                for field in late:
                    rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
                tables.append(rows.select(names).cast(wanted))
    if tables:
        return pa.concat_tables(tables, promote_options="default" if schema is None else "none")
    empty = pa.table({}) if schema is None else schema.empty_table()
    return empty.select(columns) if columns is not None else empty


def without_backup(path: Path) -> str:
    """What can be done about a lost or damaged file beside restoring it."""
    if path.parent.name not in SEGMENTED:
        return ""
    return (
        " If there is no backup, `lorestream gc --forget-lost` gives up what is gone or damaged, and the next run "
        "makes, and pays for, it again."
    )


def find_temporary(root: Path) -> list[Path]:
    """Files and folders under `root` that a writer has not finished: if none is alive, killed ones left them."""

    def is_within_another(path: Path) -> bool:
        return any(parent.name.startswith(TEMPORARY_PREFIX) for parent in path.relative_to(root).parents)

    return [path for path in sorted(root.rglob(f"{TEMPORARY_PREFIX}*")) if not is_within_another(path)]


def remove_temporary(root: Path) -> list[Path]:
    """What was removed: all that killed writers left under `root`. Call it only while holding the writer lock."""
    leftovers = find_temporary(root)
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return leftovers


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise CorruptWarehouse(
            f"{path} is missing, although the warehouse counts on it. Restore it from a backup.{without_backup(path)}"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptWarehouse(
            f"{path} cannot be read as Parquet ({error}). Restore it from a backup, or check the disk."
            f"{without_backup(path)}"
        ) from error


def _read(file: pq.ParquetFile, names: Sequence[str]) -> pa.Table:
    """These columns of all rows, decoded some row groups at a time.

    In one go Arrow would hold the levels and buffers of whole columns beside their values: thrice a table of vectors.
    """
    pieces, group, rows = [], [], 0
    for number in range(file.num_row_groups):
        group.append(number)
        rows += file.metadata.row_group(number).num_rows
        if rows >= ROW_GROUP_ROWS or number == file.num_row_groups - 1:
            pieces.append(file.read_row_groups(group, columns=list(names)))
            group, rows = [], 0
    return pa.concat_tables(pieces) if pieces else file.read(columns=list(names))


def _check_types(path: Path, wanted: pa.Schema, found: pa.Schema) -> None:
    for field in wanted:
        index = found.get_field_index(field.name)
        held = None if index < 0 else found.field(index).type
        if held is None or not held.equals(field.type):
            raise CorruptWarehouse(
                f"Column `{field.name}` of {path} is {held or 'absent'}, the contract says {field.type}. "
                "The file was changed, or written by another version: restore it from a backup."
            )


def _temporary_name(path: Path) -> Path:
    # The process is there for people; the random part keeps threads and machines that share a folder apart.
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{token_hex(4)}")


def _publish_file(temporary: Path, path: Path, rows: int) -> FileRef:
    _flush(temporary)
    with temporary.open("rb") as stream:
        content = file_digest(stream, lambda: blake2b(digest_size=DIGEST_BYTES)).hexdigest()
    size = temporary.stat().st_size
    os.replace(temporary, path)
    _flush(path.parent)
    return FileRef(str(path), rows, size, content)


def _flush(path: Path) -> None:
    """Return once `path`, a file or a folder, is on the disk and not only in the kernel's cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
