"""The append-only ledger of internal tables: `ledger/00000001.json`, ... Each commit exists whole or not at all.

A table is the files that commits added and none has removed. Data files are written before the commit that names
them, so a killed writer leaves at most files that nobody counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from warehouse.errors import CorruptWarehouse, LorestreamError, WarehouseNotFound
from warehouse.schemas import SEGMENTED
from warehouse.store import create, json_bytes, read_json

SCHEMA_VERSION = 2
FOLDER = "ledger"

_NONE: Mapping[str, Any] = MappingProxyType({})


class LedgerConflict(LorestreamError):
    """Another writer made the commit that this one was about to make."""

    exit_code = 3

    def __init__(self, root: str, number: int) -> None:
        self.root, self.number = root, number
        super().__init__(
            f"Commit {number} of the warehouse {root} was made by another writer in the meantime; nothing of this run "
            "was recorded. Run again when the other one has ended, and check that both see the same lorestream.lock."
        )


@dataclass(frozen=True)
class Commit:
    """One step of the ledger: files added to and removed from tables (POSIX paths relative to the warehouse)."""

    number: int
    kind: str
    created_at: datetime
    add: Mapping[str, tuple[str, ...]]
    remove: Mapping[str, tuple[str, ...]]
    stats: Mapping[str, object]


class Ledger:
    """The ledger of the warehouse `root`. It reads each commit once: they never change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._commits: list[Commit] = []

    def commits(self) -> list[Commit]:
        """All commits, oldest first.

        Raises CorruptWarehouse when one is missing or unreadable, UsageError when a newer Lorestream wrote it.
        """
        if self._commits:
            # They are made one after the other, so only the next ones can be new.
            while self._path(len(self._commits) + 1).exists():
                self._commits.append(self._read(len(self._commits) + 1))
            return list(self._commits)
        numbers = sorted(int(path.stem) for path in (self.root / FOLDER).glob("*.json") if path.stem.isdigit())
        if numbers != list(range(1, len(numbers) + 1)):
            absent = next(n for n, found in enumerate(numbers, start=1) if n != found)
            raise CorruptWarehouse(
                f"{self._path(absent)} is missing, although later commits exist. Restore it from a backup: without it "
                "nobody knows which files make up the tables."
            )
        self._commits += [self._read(number) for number in numbers]
        return list(self._commits)

    def files(self, table: str) -> list[Path]:
        """Absolute paths of the live files of `table`, in the order they were added; none if it has no commit."""
        root = self.root.resolve()
        return [root / path for path in self._live(table)]

    def dropped(self) -> dict[str, datetime]:
        """Files (relative to the warehouse) that were removed from all tables they were in, and when."""
        live: dict[str, set[str]] = {}
        dropped: dict[str, datetime] = {}
        for commit in self.commits():
            for table, paths in commit.remove.items():
                live.setdefault(table, set()).difference_update(paths)
                dropped.update(dict.fromkeys(paths, commit.created_at))
            for table, paths in commit.add.items():
                live.setdefault(table, set()).update(paths)
        return {path: at for path, at in dropped.items() if not any(path in paths for paths in live.values())}

    def commit(
        self,
        kind: str,
        add: Mapping[str, Sequence[str | Path]],
        *,
        remove: Mapping[str, Sequence[str | Path]] = _NONE,
        stats: Mapping[str, object] = _NONE,
        now: datetime,
    ) -> Commit:
        """The new commit, durable. Paths are absolute or relative to the warehouse; added files must exist.

        Raises LedgerConflict when another writer took the number; then nothing was recorded.
        """
        assert now.tzinfo is not None, "times are in UTC"
        commit = Commit(
            number=len(self.commits()) + 1,
            kind=kind,
            created_at=now,
            add={table: tuple(map(self._relative, paths)) for table, paths in add.items()},
            remove={table: tuple(map(self._relative, paths)) for table, paths in remove.items()},
            stats=dict(stats),
        )
        for table, paths in commit.remove.items():
            assert set(paths) <= set(self._live(table)), f"not live in {table}: {set(paths) - set(self._live(table))}"
        for table, paths in commit.add.items():
            assert not set(paths) & set(self._live(table)), f"already in {table}: {paths}"
            absent = [path for path in paths if not (self.root / path).is_file()]
            assert not absent, f"commit before write: {absent}"
        try:
            create(self._path(commit.number), json_bytes(_to_json(commit)))
        except FileExistsError:
            raise LedgerConflict(str(self.root), commit.number) from None
        self._commits.append(commit)
        return commit

    def _live(self, table: str) -> list[str]:
        live: dict[str, None] = {}
        for commit in self.commits():
            for path in commit.remove.get(table, ()):
                live.pop(path, None)
            live.update(dict.fromkeys(commit.add.get(table, ())))
        return list(live)

    def _path(self, number: int) -> Path:
        return self.root / FOLDER / f"{number:08d}.json"

    def _relative(self, path: str | Path) -> str:
        if Path(path).is_absolute():
            # The folder is resolved, not the file: in a dry run's overlay the files are links to elsewhere.
            path = (Path(path).parent.resolve() / Path(path).name).relative_to(self.root.resolve())
        assert ".." not in Path(path).parts, f"{path} is outside the warehouse"
        return str(PurePosixPath(path))

    def _read(self, number: int) -> Commit:
        path = self._path(number)
        value: dict[str, Any] = read_json(path, "ledger commit", SCHEMA_VERSION)
        try:
            return Commit(
                number=number,
                kind=value["kind"],
                created_at=datetime.fromisoformat(value["created_at"]),
                add={table: tuple(paths) for table, paths in value["add"].items()},
                remove={table: tuple(paths) for table, paths in value["remove"].items()},
                stats=value["stats"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CorruptWarehouse(
                f"The ledger commit {path} does not have the form of a commit ({error!r}). Restore it from a backup."
            ) from error


def existing_ledger(root: Path) -> Ledger:
    """The ledger of the warehouse `root`. Raises WarehouseNotFound where there is none."""
    ledger = Ledger(root)
    if not ledger.commits():
        raise WarehouseNotFound(str(root))
    return ledger


def _to_json(commit: Commit) -> dict[str, object]:
    return {
        # Version 1 counts every segment that exists: it must not open a warehouse where one stays for its readers only.
        "schema_version": SCHEMA_VERSION if commit.remove.keys() & set(SEGMENTED) else 1,
        "kind": commit.kind,
        "created_at": commit.created_at.isoformat(),
        "add": commit.add,
        "remove": commit.remove,
        "stats": commit.stats,
    }
