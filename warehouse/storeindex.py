"""What a store holds: `index/00000042.json` lists every file of the warehouse as it is in generation 42.

Objects are named after the file and its digest, so none is ever written twice with different bytes, and the objects of
one generation stay whole while the next is being put beside them. A generation exists once its index does.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.keys import DIGEST_BYTES
from warehouse.numbered import newest, object_of
from warehouse.objects import Objects
from warehouse.store import replacing

FOLDER = "index"
SCHEMA_VERSION = 1
_SHOWN_DIGITS = 16
_TRIES = 5


@dataclass(frozen=True)
class Entry:
    """A file of the warehouse: its size, BLAKE2b digest, and when it was written (which garbage collection goes by)."""

    bytes: int
    digest: str
    modified_ns: int


@dataclass(frozen=True)
class Index:
    """Generation `number` of the store of `warehouse` (an id drawn when it was first filled): its files by name.

    `writer` names the working copy that wrote it, and is a word that no other index has.
    """

    warehouse: str
    number: int
    files: Mapping[str, Entry]
    writer: str = ""

    def objects(self) -> set[str]:
        """The names of the objects that hold its files."""
        return {object_name(name, entry.digest) for name, entry in self.files.items()}


def object_name(name: str, digest: str) -> str:
    """Where the file `name` with that content lies: `knowledge/a.parquet` -> `knowledge/a.<digest>.parquet`."""
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}.{digest[:_SHOWN_DIGITS]}{path.suffix}"))


def newest_index(objects: Objects, url: str) -> Index | None:
    """The newest generation of the store, None in an empty one.

    Raises CorruptWarehouse for one that cannot be read, UsageError where a newer Lorestream wrote it.
    """
    for _ in range(_TRIES):
        number = newest(objects, FOLDER)
        if not number:
            return None
        try:
            content = objects.read(object_of(FOLDER, number))
        except FileNotFoundError:
            # A writer has put two later generations in between, and removed this one.
            continue
        return parse_index(content, f"{url}/{object_of(FOLDER, number)}")
    raise CorruptWarehouse(f"{url}/{FOLDER} lists objects that cannot be read. Try again; if it stays, restore them.")


def index_json(index: Index) -> dict[str, object]:
    """`index` as the JSON object that `parse_index` reads."""
    return {
        "schema_version": SCHEMA_VERSION,
        "warehouse": index.warehouse,
        "number": index.number,
        "writer": index.writer,
        "files": {name: [e.bytes, e.digest, e.modified_ns] for name, e in sorted(index.files.items())},
    }


def index_bytes(index: Index) -> bytes:
    """`index` as the bytes of its object."""
    # A file a line would be pleasant; with tens of thousands of them, written at every segment, it is not.
    return orjson.dumps(index_json(index), option=orjson.OPT_APPEND_NEWLINE)


def parse_index(content: bytes, where: str) -> Index:
    """The index in `content`. Raises CorruptWarehouse for what is none, UsageError for a newer Lorestream's."""
    try:
        value: dict[str, Any] = orjson.loads(content)
        if value["schema_version"] > SCHEMA_VERSION:
            raise UsageError(
                f"{where} has schema version {value['schema_version']}, this Lorestream knows versions up to "
                f"{SCHEMA_VERSION}. Upgrade Lorestream, or use the version that wrote the store."
            )
        files = {name: Entry(*fields) for name, fields in value["files"].items()}
        return Index(value["warehouse"], value["number"], files, value["writer"])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWarehouse(
            f"{where} is not the index of a store ({error!r}). Remove it to go back to the generation before, if that "
            "is still there, or restore it from a backup."
        ) from error


def copy_object(objects: Objects, url: str, name: str, digest: str, path: Path, modified_ns: int | None = None) -> None:
    """Make `path` the file `name` with that digest. Raises CorruptWarehouse when the object is gone or another."""
    source = object_name(name, digest)
    try:
        with replacing(path) as temporary:
            objects.fetch(source, temporary)
            found = digest_of(temporary)
            if found != digest:
                raise CorruptWarehouse(
                    f"{url}/{source} is not what the store's index describes (digest {found}, not {digest}). Remove "
                    "that object, and have it put there again by `lorestream sync` on a machine that has the file."
                )
            if modified_ns is not None:
                os.utime(temporary, ns=(modified_ns, modified_ns))
    except FileNotFoundError:
        raise CorruptWarehouse(
            f"{url}/{source} is missing. Open the warehouse again to read a newer snapshot; if that does not do, have "
            "it put there again by `lorestream sync` on a machine that has the file."
        ) from None


def digest_of(path: Path) -> str:
    """The BLAKE2b digest of a file's bytes, as a `FileRef` has it."""
    with path.open("rb") as stream:
        return file_digest(stream, lambda: blake2b(digest_size=DIGEST_BYTES)).hexdigest()
