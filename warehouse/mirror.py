"""The public tables on an object store: copied there after each publication, and read from there through a cache.

A mirror holds the files that the manifest names and the manifest itself, under the same names. Files go first and the
manifest last, each as one object, so readers see one snapshot or the next whatever is interrupted. The warehouse's own
tables (events, texts, ledger) and the SQL catalogue, which names local paths, stay where they are.
"""

import os
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from warehouse.errors import CorruptWarehouse, WarehouseNotFound
from warehouse.keys import DIGEST_BYTES, digest
from warehouse.objects import Objects
from warehouse.schemas import FEATURES
from warehouse.snapshot import MANIFEST_PATH, Snapshot, read_manifest
from warehouse.store import FileRef, replacing


@dataclass(frozen=True)
class MirrorReport:
    """What was copied to a mirror and removed from it; `snapshot` is what its readers see."""

    snapshot: str | None
    copied: int
    bytes: int
    removed: int


def mirror(root: Path, objects: Objects) -> MirrorReport:
    """A report of bringing `objects` to the state of the warehouse `root`. Callers hold the writer lock of `root`.

    What is there already is not copied again. Files that no snapshot names any longer, for which retention has waited
    already, are removed last. Raises CorruptWarehouse when a file of a snapshot is gone here or did not arrive whole.
    """
    manifest = read_manifest(root)
    if manifest.current is None:
        return MirrorReport(None, 0, 0, 0)
    for snapshot in manifest.snapshots:
        for table in FEATURES:
            snapshot.files(root, table)
    wanted = {ref.path: ref for s in manifest.snapshots for refs in s.tables.values() for ref in refs}
    there = objects.sizes("features")
    missing = [ref for ref in wanted.values() if there.get(ref.path) != ref.bytes]
    for ref in missing:
        objects.store(ref.path, root / ref.path)
    arrived = objects.sizes("features")
    for ref in missing:
        if arrived.get(ref.path) != ref.bytes:
            raise CorruptWarehouse(
                f"{ref.path} has {arrived.get(ref.path)} bytes on the mirror instead of {ref.bytes}. The mirror's "
                "readers see the snapshot before; run `lorestream mirror` again."
            )
    objects.write(MANIFEST_PATH, (root / MANIFEST_PATH).read_bytes())
    stale = [name for name in arrived if name.endswith(".parquet") and name not in wanted]
    for name in stale:
        objects.remove(name)
    return MirrorReport(manifest.current, len(missing), sum(ref.bytes for ref in missing), len(stale))


class Cache:
    """A local folder with those files of a mirror that were read: they never change, so each is copied once."""

    def __init__(self, url: str, objects: Objects, folder: Path | None = None) -> None:
        self.url, self._objects = url, objects
        self.root = folder or _default_folder(url)

    def refresh(self) -> Path:
        """The cache's folder with the mirror's newest manifest in it, and without files that it does not name.

        Raises WarehouseNotFound where the mirror has none.
        """
        try:
            content = self._objects.read(MANIFEST_PATH)
        except FileNotFoundError:
            raise WarehouseNotFound(self.url) from None
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
                    self._copy(ref, path)

    def _copy(self, ref: FileRef, path: Path) -> None:
        try:
            with replacing(path) as temporary:
                self._objects.fetch(ref.path, temporary)
                with temporary.open("rb") as stream:
                    found = file_digest(stream, lambda: blake2b(digest_size=DIGEST_BYTES)).hexdigest()
                if found != ref.digest:
                    raise CorruptWarehouse(
                        f"{self.url}/{ref.path} is not what the manifest describes (digest {found}, not {ref.digest}). "
                        "Run `lorestream mirror` again where the warehouse is."
                    )
        except FileNotFoundError:
            raise CorruptWarehouse(
                f"{self.url}/{ref.path} is missing. Open the warehouse again to read a newer snapshot, or run "
                "`lorestream mirror` where it is."
            ) from None


def _default_folder(url: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lorestream" / digest(url)[:16]
