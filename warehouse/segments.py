"""Texts and vectors, written in segments: a segment counts from the moment it exists, and soon the ledger names it.

    paths = segments(ledger, "knowledge")
    record_segments(ledger, now)           # after each one is written, and what a killed writer left

What is paid for must not depend on a second write, so a segment that no commit names yet counts as well, unless it was
merged from others (`warehouse.merging`) and the commit that puts it in their place was never made. Once a commit names
it, its absence is told: otherwise its calls would be made, and paid, again without a word.
"""

from datetime import datetime
from pathlib import Path

from warehouse.errors import CorruptWarehouse
from warehouse.ledger import Ledger
from warehouse.schemas import SEGMENTED
from warehouse.store import read_table, without_backup

MERGED = "merged-"


class LostSegments(CorruptWarehouse):
    """Files of texts or vectors that the ledger names are gone."""

    def __init__(self, lost: list[Path]) -> None:
        self.lost = lost
        named = str(lost[0]) if len(lost) == 1 else f"{lost[0]} and {len(lost) - 1} more"
        super().__init__(
            f"{named} {'is' if len(lost) == 1 else 'are'} missing, although the warehouse counts on "
            f"{'it' if len(lost) == 1 else 'them'}. Restore from a backup.{without_backup(lost[0])}"
        )


def segments(ledger: Ledger, table: str) -> list[Path]:
    """The files of `table` (one of SEGMENTED), absolute, by name. Raises LostSegments."""
    return sorted([*_named(ledger, table), *_unnamed(ledger, table)])


def record_segments(ledger: Ledger, now: datetime) -> None:
    """One commit that names the segments which no commit has named yet; none where there is none. Raises LostSegments.

    Call it under the writer lock.
    """
    for table in SEGMENTED:
        _named(ledger, table)
    add = {table: sorted(new) for table in SEGMENTED if (new := _unnamed(ledger, table))}
    if add:
        ledger.commit("segments", add=add, now=now)


def give_up_lost(ledger: Ledger, now: datetime, dry_run: bool = False) -> list[Path]:
    """The segments that the ledger names and that are gone, and all that cannot be read; none of them counts any more.

    Under the writer lock. Each segment that is there is read once.
    """
    unnamed = {table: sorted(filter(_is_damaged, _unnamed(ledger, table))) for table in SEGMENTED}
    named = {table: [path for path in ledger.files(table) if _is_damaged(path)] for table in SEGMENTED}
    remove = {table: both for table in SEGMENTED if (both := named[table] + unnamed[table])}
    if remove and not dry_run:
        # What a commit has named and given up is not found again.
        if add := {table: paths for table, paths in unnamed.items() if paths}:
            ledger.commit("segments", add=add, now=now)
        ledger.commit("forget", add={}, remove=remove, now=now)
    return [path for paths in remove.values() for path in paths]


def _is_damaged(path: Path) -> bool:
    try:
        read_table([path], None)
    except CorruptWarehouse:
        return True
    return False


def _named(ledger: Ledger, table: str) -> list[Path]:
    """The segments that the ledger names. Raises LostSegments."""
    if lost := _lost(ledger, table):
        raise LostSegments(lost)
    return ledger.files(table)


def _lost(ledger: Ledger, table: str) -> list[Path]:
    found = _present(ledger, table)
    return [path for path in ledger.files(table) if path not in found]


def _unnamed(ledger: Ledger, table: str) -> set[Path]:
    """Segments that no commit has ever named."""
    ever = {ledger.root.resolve() / path for commit in ledger.commits() for path in commit.add.get(table, ())}
    return {path for path in _present(ledger, table) - ever if not path.name.startswith(MERGED)}


def _present(ledger: Ledger, table: str) -> set[Path]:
    return set((ledger.root.resolve() / table).glob("[!.]*.parquet"))
