"""Who was erased: a list of salted digests that ingestion goes by, so that nobody on it comes back with the next run.

The list names nobody: an id can be looked up in it, not read from it. Whoever holds the list can try ids that they
know, which is what makes it work.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Literal, get_args

import duckdb

from warehouse.errors import CorruptWarehouse
from warehouse.keys import erased_digest
from warehouse.sql import quote
from warehouse.store import read_json, write_json

FOLDER = "erasures"
LIST_PATH = f"{FOLDER}/erased.json"
SCHEMA_VERSION = 1

Side = Literal["user", "item"]

# Ids in free text (lines that do not parse, messages of an import) are looked for word by word, and up to so many
# words together.
_MOST_WORDS = 4
_BREAKS = re.compile(r"[,;|\t\r\n\"']+")


@dataclass(frozen=True)
class Erased:
    """The digests of erased users and items, and the salt that they were made with."""

    salt: str = ""
    users: frozenset[str] = frozenset()
    items: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.users or self.items)

    def holds(self, side: Side, entity_id: str) -> bool:
        """Whether this user or item was erased."""
        digests = self._of(side)
        return bool(digests) and erased_digest(self.salt, side, entity_id) in digests

    def named_in(self, text: str) -> bool:
        """Whether a piece of `text` is the id of anybody erased."""
        return bool(self) and any(self.holds(side, part) for part in pieces(text) for side in get_args(Side))

    def register(self, con: duckdb.DuckDBPyConnection, table: str) -> None:
        """Make `table` (digest), which the conditions of `sql` read."""
        con.execute(f"CREATE TABLE {table} (digest VARCHAR)")
        if self:
            con.executemany(f"INSERT INTO {table} VALUES (?)", [[d] for d in sorted(self.users | self.items)])

    def sql(self, side: Side, column: str, table: str) -> str:
        """SQL that tells whether the id in `column` was erased, where `register` made `table`; null for no id."""
        if not self._of(side):
            return "false"
        return f"sha256({quote(f'{self.salt}{side}:')} || {column}) IN (SELECT digest FROM {table})"

    def _of(self, side: Side) -> frozenset[str]:
        return self.users if side == "user" else self.items


def read_erased(root: Path) -> Erased:
    """Who was erased from the warehouse `root`. Raises CorruptWarehouse for a damaged list."""
    path = root / LIST_PATH
    if not path.exists():
        return Erased()
    found = read_json(path, "list of erased ids", SCHEMA_VERSION)
    try:
        return Erased(str(found["salt"]), *(frozenset(map(str, _listed(found[name]))) for name in ("users", "items")))
    except (KeyError, TypeError) as error:
        raise CorruptWarehouse(
            f"The list of erased ids {path} does not have the form of one ({error!r}). Restore it from a backup: "
            "without it erased users come back with the next run."
        ) from error


def add_erased(root: Path, users: Iterable[str], items: Iterable[str]) -> Erased:
    """The list with these ids on it, durable once this returns; the salt is drawn when the first is erased."""
    known = read_erased(root)
    salt = known.salt or token_hex(16)
    grown = replace(
        known,
        salt=salt,
        users=known.users | {erased_digest(salt, "user", user) for user in users},
        items=known.items | {erased_digest(salt, "item", item) for item in items},
    )
    if grown != known:
        write_json(
            root / LIST_PATH,
            {
                "schema_version": SCHEMA_VERSION,
                "salt": salt,
                "users": sorted(grown.users),
                "items": sorted(grown.items),
            },
        )
    return grown


def pieces(text: str) -> Iterator[str]:
    """What of `text` may be an id: fields between separators and quotes, and runs of a few words inside them."""
    yield text
    for field in _BREAKS.split(text):
        yield field
        words = field.split()
        for first in range(len(words)):
            for last in range(first + 1, min(first + _MOST_WORDS, len(words)) + 1):
                yield " ".join(words[first:last])


def _listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} instead of a list")
    return value
