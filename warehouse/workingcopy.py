"""A warehouse that lives on an object store, and the local folder in which it is worked on.

    with working_copy(root, "s3://bucket/warehouse", "lorestream run") as copy:    # under the writer lock of `root`
        ...                                                                        # writers write to `root` as ever
        copy.push()                                                                # what is finished is safe from here

Entering takes the store's lease and brings the folder to the newest generation; a push puts what is new in the folder
as objects and then, in one step, the index that names them. A folder is at all times what a killed writer may leave and
the next one continues, so what is pushed in between is that as well: a fresh machine goes on from the last push, as the
same machine would after a kill.

`store.json` in the folder says which generation it is a copy of. Where the two differ, the store is right, with these
exceptions, all of them for a folder that is of the store's newest generation, its last push having failed:
files that are new in it stay and are pushed, and so do the records that are replaced in place.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson

from warehouse import catalog
from warehouse.erased import FOLDER as ERASURES
from warehouse.errors import CopyDiverged, LorestreamError, StoreMoved
from warehouse.garbage import LEDGER_FOLDERS, RECORD_FOLDERS
from warehouse.lease import lease
from warehouse.numbered import claim, remove_before
from warehouse.objects import FsspecObjects, Objects
from warehouse.snapshot import MANIFEST_PATH
from warehouse.store import read_json, replacing
from warehouse.storeindex import FOLDER as INDEX
from warehouse.storeindex import (
    Entry,
    Index,
    copy_object,
    digest_of,
    index_bytes,
    index_json,
    newest_index,
    object_name,
    parse_index,
)

log = getLogger("lorestream.store")

RECORD_NAME = "store.json"
SCHEMA_VERSION = 1
# The whole warehouse but for what is of use in one place only: locks, and the SQL catalogue, which names local paths.
FOLDERS = tuple(sorted(LEDGER_FOLDERS | RECORD_FOLDERS | {"features", ERASURES}))

# Of a small file most of the time is waiting.
_AT_ONCE = 16
_SHOWN = 3
_MB = 1_000_000

# What `lorestream init` makes, and all that may be thrown away unasked.
_EMPTY_WAREHOUSE = frozenset({"ledger/00000001.json", MANIFEST_PATH})


@dataclass
class Traffic:
    """What went between folder and store: files and bytes fetched and sent, files removed from either."""

    generation: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    removed_here: int = 0
    removed_there: int = 0


@contextmanager
def working_copy(root: Path, url: str, owner: str, wait_s: float = 0.0) -> Iterator["WorkingCopy"]:
    """The folder `root` at the store's newest generation, which no other machine writes; pushed when the block ends.

    What a block that fails has finished is pushed as well. Raises WriterBusy, CopyDiverged, StoreUnavailable,
    StoreRefused.
    """
    objects = FsspecObjects(url)
    copy = WorkingCopy(root, url, objects)
    with lease(objects, url, owner, copy.name, wait_s):
        copy.pull()
        try:
            yield copy
        except BaseException:
            try:
                copy.push()
            except LorestreamError as error:
                log.warning("what was finished stays in %s until the next command: %s", root, error)
            raise
        copy.push()


class WorkingCopy:
    """The folder `root` as a copy of the warehouse at `url`. Use it under the writer lock and the store's lease.

    `name` is this folder's own, drawn when it first became a copy.
    """

    def __init__(self, root: Path, url: str, objects: Objects) -> None:
        self.root, self.url, self._objects = root, url, objects
        self.traffic = Traffic()
        self._known: Index | None = None
        self._tried = ""
        record = root / RECORD_NAME
        if record.exists():
            found: dict[str, Any] = read_json(record, "record of a working copy", SCHEMA_VERSION)
            self.name = str(found["copy"])
            if found["index"] is not None:
                self._known = parse_index(orjson.dumps(found["index"]), str(record))
        else:
            self.name = token_hex(8)
            self._remember(None)

    def pull(self) -> None:
        """Bring the folder to the store's newest generation.

        Raises CopyDiverged where the folder is a copy of something else, or holds what the store went on without.
        """
        there = newest_index(self._objects, self.url)
        if there is None:
            if self._known is not None:
                raise self._diverged(
                    f"the folder is a copy of generation {self._known.number}, and the store is empty",
                    "Correct the URL or restore the store. To fill an empty store from the folder, remove "
                    f"{self.root / RECORD_NAME}.",
                )
            return
        base = self._base_of(there)
        here = self._scan(there, base)
        if self._wrote(there, base, here):
            base = there
        is_behind = base.number < there.number
        if is_behind:
            self._refuse_unpushed(here, base, there)
        wanted = [name for name, entry in there.files.items() if name not in here or here[name].digest != entry.digest]
        if not is_behind:
            wanted = [name for name in wanted if not self._has_moved_on(name, here, base)]
        dropped = [name for name in base.files if name not in there.files and name in here]
        if wanted or dropped or is_behind:
            # Interrupted from here on, the folder holds files of both generations. What it holds of the older is to be
            # told from what was written since, so that no old record passes for a newer one.
            mixed = {**there.files, **base.files, **(here if is_behind else {})}
            self._remember(replace(there, files=mixed))
            self._fetch(there, [name for name in wanted if name != MANIFEST_PATH])
            self._fetch(there, [name for name in wanted if name == MANIFEST_PATH])
            for name in dropped:
                (self.root / name).unlink()
            self.traffic.removed_here += len(dropped)
            if MANIFEST_PATH in wanted:
                catalog.rebuild(self.root)
            log.info(
                "store: generation %d, %d files fetched (%.1f MB), %d removed",
                *(there.number, len(wanted), sum(there.files[name].bytes for name in wanted) / _MB, len(dropped)),
            )
        self._remember(there)

    def push(self) -> None:
        """Put what the folder has gained into the store and take out what it has lost, as one new generation.

        Raises StoreMoved, nothing taken over, when another machine has written a generation meanwhile.
        """
        known = self._known or Index(token_hex(8), 0, {})
        here = self._scan(known)
        if {name: e.digest for name, e in here.items()} == {name: e.digest for name, e in known.files.items()}:
            return
        new = [name for name, e in here.items() if name not in known.files or known.files[name].digest != e.digest]
        self._put(new, here)
        index = Index(known.warehouse, known.number + 1, here, f"{self.name}-{token_hex(8)}")
        before, self._tried = self._tried, index.writer
        try:
            claim(self._objects, INDEX, index.number, index_bytes(index))
        except FileExistsError:
            there = newest_index(self._objects, self.url)
            if there is None or there.writer != before:
                raise StoreMoved(self.url, index.number) from None
            # The push before this one was told that it had failed, and had not.
            self._remember(there)
            self.push()
            return
        self._remember(index)
        gone = known.objects() - index.objects()
        self._each(gone, self._objects.remove)
        # Who is reading the one before may finish.
        remove_before(self._objects, INDEX, index.number - 1)
        self.traffic.removed_there += len(gone)
        log.info(
            "store: generation %d, %d files sent (%.1f MB), %d removed",
            *(index.number, len(new), sum(here[name].bytes for name in new) / _MB, len(gone)),
        )

    def settle(self) -> None:
        """Push, and make the store hold exactly the objects that its index names.

        Killed pushes leave some beside them, with rows in them. Those that were lost or cut short are put again.
        """
        self.push()
        if self._known is None:
            return
        files, named = self._known.files, self._known.objects()
        found = {name: size for folder in FOLDERS for name, size in self._objects.sizes(folder).items()}
        self._put([n for n, e in files.items() if found.get(object_name(n, e.digest)) != e.bytes], files)
        stray = found.keys() - named
        self._each(stray, self._objects.remove)
        self.traffic.removed_there += len(stray)

    def _base_of(self, there: Index) -> Index:
        """The generation that the folder is a copy of, generation 0 where it is none yet."""
        known = self._known
        if known is None:
            return Index(there.warehouse, 0, {})
        if known.warehouse != there.warehouse:
            raise self._diverged(
                "the store holds another warehouse than the one that the folder is a copy of",
                "Correct `store` or `warehouse` in the configuration.",
            )
        if known.number > there.number or (known.number == there.number and known.writer != there.writer):
            raise self._diverged(
                f"the folder is a copy of generation {known.number}, and the store's generation {there.number} is not "
                "one that came after it",
                "Was the store restored from a backup? To go on from what it holds, move the folder away.",
            )
        return known

    def _wrote(self, there: Index, base: Index, here: dict[str, Entry]) -> bool:
        """Whether that generation is this folder's own, which was told that its push had failed."""
        return (
            there.number == base.number + 1
            and there.writer.startswith(f"{self.name}-")
            and all(name in here and here[name].digest == entry.digest for name, entry in there.files.items())
        )

    def _refuse_unpushed(self, here: dict[str, Entry], base: Index, there: Index) -> None:
        new = [
            name
            for name, entry in here.items()
            if name not in base.files and (name not in there.files or there.files[name].digest != entry.digest)
        ]
        if not new or (base.number == 0 and set(here) <= _EMPTY_WAREHOUSE):
            return
        shown = ", ".join(new[:_SHOWN]) + (f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else "")
        if not base.number:
            raise self._diverged(
                f"the folder holds a warehouse that is no copy of the store's ({shown})",
                "Name another folder as `warehouse`, or an empty place as `store`.",
            )
        texts = sum(name.startswith("knowledge/") for name in new)
        raise self._diverged(
            f"the folder holds {len(new)} files that did not reach the store ({shown}), and another machine has "
            f"written generations {base.number + 1} to {there.number} since",
            f"To go on from what the store holds, move the folder away: {texts} segments of texts are then paid for "
            "again, as far as the other machine has not asked the same.",
        )

    def _has_moved_on(self, name: str, here: dict[str, Entry], base: Index) -> bool:
        """Whether the folder's record `name` is newer than the store's: changed here since, and whole."""
        if not name.endswith(".json") or name not in here or here[name].digest == base.files[name].digest:
            return False
        # The ledger's commits are never replaced.
        if name.startswith("ledger/"):
            return False
        try:
            orjson.loads((self.root / name).read_bytes())
        except orjson.JSONDecodeError:
            return False
        return True

    def _scan(self, *known: Index) -> dict[str, Entry]:
        """The files of the warehouse in the folder. One with the size and time of a known one is not read again."""
        found = {}
        for folder in FOLDERS:
            for path in sorted((self.root / folder).rglob("*")):
                name = path.relative_to(self.root).as_posix()
                if any(part.startswith(".") for part in name.split("/")) or not path.is_file():
                    continue
                stat = path.stat()
                entries = (index.files[name] for index in known if name in index.files)
                same = next((e for e in entries if (e.bytes, e.modified_ns) == (stat.st_size, stat.st_mtime_ns)), None)
                found[name] = same or Entry(stat.st_size, digest_of(path), stat.st_mtime_ns)
        return found

    def _fetch(self, index: Index, names: Sequence[str]) -> None:
        def fetch(name: str) -> None:
            entry = index.files[name]
            copy_object(self._objects, self.url, name, entry.digest, self.root / name, entry.modified_ns)

        self._each(names, fetch)
        self.traffic.fetched += len(names)
        self.traffic.fetched_bytes += sum(index.files[name].bytes for name in names)

    def _put(self, names: Sequence[str], files: Mapping[str, Entry]) -> None:
        self._each(names, lambda name: self._objects.store(object_name(name, files[name].digest), self.root / name))
        self.traffic.sent += len(names)
        self.traffic.sent_bytes += sum(files[name].bytes for name in names)

    def _each(self, names: Iterable[str], work: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lorestream-store") as threads:
            for _ in threads.map(work, names):
                pass

    def _remember(self, index: Index | None) -> None:
        self._known = index
        self.traffic.generation = 0 if index is None else index.number
        record = {
            "schema_version": SCHEMA_VERSION,
            "url": self.url,
            "copy": self.name,
            "index": None if index is None else index_json(index),
        }
        with replacing(self.root / RECORD_NAME) as temporary:
            temporary.write_bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def _diverged(self, what: str, advice: str) -> CopyDiverged:
        return CopyDiverged(str(self.root), self.url, what, advice)
