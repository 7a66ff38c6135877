"""The public tables of a store, read from any machine through a local folder that keeps what was read.

Readers need to list `index/` and read `index/` and `features/` below the store, and nothing else of it.
"""

import os
from contextlib import suppress
from pathlib import Path

from warehouse.errors import CorruptWarehouse, WarehouseNotFound
from warehouse.keys import digest
from warehouse.objects import Objects
from warehouse.schemas import FEATURES
from warehouse.snapshot import MANIFEST_PATH, Snapshot, read_manifest
from warehouse.store import replacing
from warehouse.storeindex import copy_object, newest_index, object_name

_TRIES = 5


class Cache:
    """A local folder with those files of a store that were read: they never change, so each is copied once."""

    def __init__(self, url: str, objects: Objects, folder: Path | None = None) -> None:
        self.url, self._objects = url, objects
        self.root = folder or _default_folder(url)

    def refresh(self) -> Path:
        """The cache's folder with the store's newest manifest in it, and without files that it does not name.

        Raises WarehouseNotFound where the store has none.
        """
        content = self._manifest()
        with replacing(self.root / MANIFEST_PATH) as temporary:
            temporary.write_bytes(content)
        named = {ref.path for s in read_manifest(self.root).snapshots for refs in s.tables.values() for ref in refs}
        for table in FEATURES:
            for path in (self.root / "features" / table).glob("[!.]*.parquet"):
                if path.relative_to(self.root).as_posix() not in named:
                    path.unlink(missing_ok=True)
        return self.root

    def fetch(self, snapshot: Snapshot) -> None:
        """Copy those files of `snapshot` that are not here yet. Raises CorruptWarehouse for one gone or changed."""
        for refs in snapshot.tables.values():
            for ref in refs:
                path = self.root / ref.path
                if not (path.is_file() and path.stat().st_size == ref.bytes):
                    copy_object(self._objects, self.url, ref.path, ref.digest, path)

    def _manifest(self) -> bytes:
        for _ in range(_TRIES):
            index = newest_index(self._objects, self.url)
            if index is None or MANIFEST_PATH not in index.files:
                raise WarehouseNotFound(self.url)
            # A writer that publishes in between removes it, and there is a newer index then.
            with suppress(FileNotFoundError):
                return self._objects.read(object_name(MANIFEST_PATH, index.files[MANIFEST_PATH].digest))
        raise CorruptWarehouse(
            f"{self.url}: the manifest that the store's index names is missing. Have it put there again by `lorestream "
            "sync` on a machine that has the warehouse."
        )


def _default_folder(url: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lorestream" / digest(url)[:16]
