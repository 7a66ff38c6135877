"""What `features/manifest.json` says: the snapshots of the public tables, and which of them is current or pinned.

Readers need only this page: a snapshot is a list of immutable Parquet files, and snapshots share files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from warehouse.errors import CorruptWarehouse, UsageError
from warehouse.ledger import Ledger
from warehouse.schemas import FEATURES
from warehouse.store import FileRef, read_json, write_json

# 1 described files in each snapshot anew, and knew neither pins nor retired snapshots.
SCHEMA_VERSION = 2
MANIFEST_PATH = "features/manifest.json"
INPUTS_FOLDER = "features/inputs"


@dataclass(frozen=True)
class Snapshot:
    """One published state of the public tables.

    `tables` lists the files of each (paths relative to the warehouse), `stats` holds `rows` and `rows_added` per table
    and `augment_dim` (the length of every augment vector) where it has rows, `lineage` what the publisher said made it.
    """

    snapshot_id: str
    created_at: datetime
    parent: str | None
    tables: Mapping[str, tuple[FileRef, ...]]
    stats: Mapping[str, Mapping[str, int]]
    lineage: Mapping[str, object]

    def files(self, root: Path, table: str) -> list[Path]:
        """Absolute paths of the files of `table`, each present with its recorded size.

        Raises CorruptWarehouse for a file that is absent or cut short.
        """
        paths = []
        for ref in self.tables[table]:
            path = root.resolve() / ref.path
            size = path.stat().st_size if path.is_file() else None
            if size != ref.bytes:
                raise CorruptWarehouse(
                    f"{path} {'is missing' if size is None else f'has {size} bytes instead of {ref.bytes}'}, although "
                    f"snapshot {self.snapshot_id} counts on it. Restore it from a backup, or read another snapshot "
                    "(`lorestream snapshots` lists them, `lorestream rollback ID` makes one current)."
                )
            paths.append(path)
        return paths

    def augment_dim(self, table: str) -> int:
        """Length of the augment vectors in `table`; 0 when it has no rows."""
        return self.stats[table].get("augment_dim", 0)


@dataclass(frozen=True)
class Manifest:
    """All snapshots, oldest first, and the id of the current one (None before the first publication).

    `pinned` ones are never retired. `retired` maps the ids of snapshots that retention has given up to when it did:
    they are no longer listed, but readable until `lorestream gc` removes them.
    """

    current: str | None
    snapshots: tuple[Snapshot, ...]
    pinned: frozenset[str] = frozenset()
    retired: Mapping[str, datetime] = field(default_factory=dict)

    @property
    def listed(self) -> tuple[Snapshot, ...]:
        """The snapshots that are not retired, oldest first."""
        return tuple(s for s in self.snapshots if s.snapshot_id not in self.retired)

    def get(self, snapshot_id: str) -> Snapshot:
        """The snapshot of that id. Raises UsageError, naming the known ones, when there is none."""
        for snapshot in self.snapshots:
            if snapshot.snapshot_id == snapshot_id:
                return snapshot
        known = ", ".join(snapshot.snapshot_id for snapshot in self.listed[-5:]) or "none yet"
        raise UsageError(
            f"There is no snapshot `{snapshot_id}`; the newest ones are: {known}. See `lorestream snapshots`."
        )

    def current_snapshot(self) -> Snapshot | None:
        """The current snapshot, or None before the first publication."""
        return None if self.current is None else self.get(self.current)


def read_manifest(root: Path) -> Manifest:
    """The manifest of the warehouse `root`; an empty one when nothing was published yet.

    Raises CorruptWarehouse for a damaged or lost file, UsageError for one written by a newer Lorestream.
    """
    path = root / MANIFEST_PATH
    if not path.exists():
        published = next((root / "features").glob("*/[!.]*.parquet"), None)
        # A warehouse is published, empty, before its first commit.
        if published is not None or Ledger(root).commits():
            raise CorruptWarehouse(
                f"The manifest {path} is missing, although {published or 'the ledger'} shows that there was one. "
                "Restore it from a backup: without it nobody knows which files the snapshots hold."
            )
        return Manifest(None, ())
    value: dict[str, Any] = read_json(path, "manifest", SCHEMA_VERSION)
    try:
        files = {ref["path"]: FileRef(**ref) for ref in value["files"]} if value["schema_version"] > 1 else None
        return Manifest(
            value["current"],
            tuple(_snapshot(snapshot, files) for snapshot in value["snapshots"]),
            frozenset(value.get("pinned", ())),
            {name: datetime.fromisoformat(moment) for name, moment in value.get("retired", {}).items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CorruptWarehouse(
            f"The manifest {path} does not have the form of a manifest ({error!r}). Restore it from a backup."
        ) from error


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Replace the manifest of the warehouse `root` in one step. Callers hold the writer lock."""
    write_json(root / MANIFEST_PATH, manifest_json(manifest))


def manifest_json(manifest: Manifest) -> dict[str, object]:
    """`manifest` as the JSON object that `read_manifest` reads.

    A file is described once, however many snapshots share it: the manifest is written with every publication.
    """
    files = {ref.path: ref for snapshot in manifest.snapshots for refs in snapshot.tables.values() for ref in refs}
    return {
        "schema_version": SCHEMA_VERSION,
        "current": manifest.current,
        "pinned": sorted(manifest.pinned),
        "retired": {name: moment.isoformat() for name, moment in sorted(manifest.retired.items())},
        "files": list(files.values()),
        "snapshots": [
            {
                "snapshot_id": snapshot.snapshot_id,
                "created_at": snapshot.created_at.isoformat(),
                "parent": snapshot.parent,
                "tables": {table: [ref.path for ref in refs] for table, refs in snapshot.tables.items()},
                "stats": {table: dict(stats) for table, stats in snapshot.stats.items()},
                "lineage": dict(snapshot.lineage),
            }
            for snapshot in manifest.snapshots
        ],
    }


def write_inputs(root: Path, run: str, inputs: Mapping[str, object]) -> str:
    """The path (relative to the warehouse) where a run's publication says what it is made from.

    It belongs into the snapshot's lineage as `inputs`. A file of its own, since the manifest is read by everybody.
    """
    path = f"{INPUTS_FOLDER}/{run}.json"
    write_json(root / path, {"schema_version": SCHEMA_VERSION, **inputs})
    return path


def read_inputs(root: Path, snapshot: Snapshot) -> dict[str, object]:
    """What the publication of `snapshot` was made from; nothing where it does not say so."""
    path = snapshot.lineage.get("inputs")
    if not isinstance(path, str) or not (root / path).is_file():
        return {}
    return read_json(root / path, "record of a publication's inputs", SCHEMA_VERSION)


def replace_inputs(root: Path, snapshot: Snapshot, inputs: Mapping[str, object]) -> None:
    """Replace what `read_inputs` gave in one step."""
    write_json(root / str(snapshot.lineage["inputs"]), {**inputs, "schema_version": SCHEMA_VERSION})


def require_public(tables: Iterable[str]) -> None:
    """Raise UsageError unless all `tables` are public ones."""
    for table in tables:
        if table not in FEATURES:
            raise UsageError(f"There is no public table `{table}`; the public tables are {', '.join(FEATURES)}.")


def _snapshot(value: dict[str, Any], files: Mapping[str, FileRef] | None) -> Snapshot:
    """A snapshot of the manifest that describes its `files`; None for version 1, where each snapshot does."""
    return Snapshot(
        snapshot_id=value["snapshot_id"],
        created_at=datetime.fromisoformat(value["created_at"]),
        parent=value["parent"],
        tables={
            table: tuple(FileRef(**ref, contract=1) if files is None else files[ref] for ref in value["tables"][table])
            for table in FEATURES
        },
        stats={table: value["stats"][table] for table in FEATURES},
        lineage=value["lineage"],
    )
