"""Erasure: users and items removed from everything that a warehouse stores, and barred from coming back.

    survey = survey_erasure(root, subjects, ...)     # what it would do; reads only
    report = erase(root, subjects, ...)              # under the writer lock

It is done in steps, each of them whole or not at all, and each finding its work in what is stored; so one that was
killed anywhere is completed by the same call again, and readers see the snapshot before it or the one after it:

1. the ids are barred (`warehouse.erased`), and the report is begun with what was found;
2. one commit of the ledger puts rewritten files in the place of those that name them, and drops pools of their texts;
3. one manifest has a snapshot without them and none that had them, pinned or not: erasure wins over retention;
4. texts and vectors whose request is gone are dropped, and files that nothing counts on any more, in a store as well;
5. the report is finished.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from re import search
from typing import Any, cast

import duckdb
import orjson
import pyarrow.parquet as pq

from warehouse import catalog
from warehouse.erased import FOLDER, SCHEMA_VERSION, add_erased, pieces, read_erased
from warehouse.garbage import collect_garbage
from warehouse.keys import digest, erased_digest
from warehouse.ledger import Ledger
from warehouse.rewrite import Rows, rewrite, rows_where
from warehouse.schemas import SEGMENTED
from warehouse.segments import segments
from warehouse.snapshot import Manifest, Snapshot, read_manifest, write_manifest
from warehouse.sql import connect
from warehouse.store import FileRef, read_json, replacing, write_json
from warehouse.traces import (
    CONDITIONS,
    Subjects,
    concerned_groups,
    edits,
    feature_conditions,
    open_traces,
    rejected_rows,
)

# Whatever the clocks say that dated the garbage, it is old enough.
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Survey:
    """What an erasure finds. `rows` are places in live files of the ledger's tables, `features` in those of snapshots,
    `texts` in files of knowledge and embeddings."""

    rows: Mapping[str, Mapping[Path, Rows]]
    features: Mapping[str, Mapping[Path, Rows]]
    texts: Mapping[str, Mapping[Path, Rows]]
    pools: tuple[Path, ...]
    snapshots: tuple[str, ...]
    groups: tuple[str, ...]
    adapters: tuple[str, ...]
    # Requests of entities that stay, to be asked anew.
    asked_anew: int
    # Names of input files that the ledger holds and that name somebody.
    paths: int

    def counts(self) -> dict[str, object]:
        """What it finds as numbers and names, none of them an id of the erased."""
        current = {table: sum(map(len, files.values())) for table, files in self.features.items()}
        rows = {table: sum(map(len, files.values())) for table, files in {**self.rows, **self.texts}.items()}
        return {
            "rows": {table: count for table, count in {**rows, **current}.items() if count},
            "snapshots_expired": list(self.snapshots),
            "pools_removed": [pool.name for pool in self.pools],
            "asked_anew": self.asked_anew,
            "marked_groups": list(self.groups),
            "marked_adapters": list(self.adapters),
            "input_paths_that_name_them": self.paths,
        }


@dataclass(frozen=True)
class IdColumns:
    """What ids are called in the inputs: rejected rows hold the inputs' own columns."""

    user: Collection[str] = field(default=("user_id",))
    item: Collection[str] = field(default=("item_id",))


def survey_erasure(root: Path, subjects: Subjects, columns: IdColumns) -> Survey:
    """What `erase` would find now. Nothing is written."""
    ledger, manifest = Ledger(root), read_manifest(root)
    with connect() as con:
        open_traces(con, ledger, segments(ledger, "knowledge"), subjects)
        rows = {table: rows_where(con, ledger.files(table), where) for table, where in CONDITIONS.items()}
        rows["rejected"] = rejected_rows(ledger.files("rejected"), subjects, columns.user, columns.item)
        features = {
            table: rows_where(con, _all_files(root, manifest, table), where, grown=True)
            for table, where in feature_conditions(subjects).items()
        }
        texts = {table: _orphans(con, ledger, table) for table in SEGMENTED}
        groups = concerned_groups(con)
        [(anew,)] = con.execute(
            "SELECT count(*) FROM doomed WHERE entity_id NOT IN (FROM erased_users UNION ALL FROM erased_items)"
        ).fetchall()
        pools = _pools_of(con, ledger) if any(texts.values()) else []
    held = _snapshots_with(root, manifest, {path for files in features.values() for path in files})
    learned_from = any(rows[table] for table in ("behaviours", "partitions", "items", "requests"))
    return Survey(
        rows={table: found for table, found in rows.items() if found},
        features=features,
        texts=texts,
        pools=tuple(pools),
        snapshots=tuple(held),
        groups=tuple(groups),
        adapters=tuple(sorted(f.name for f in (root / "adapters").glob("[0-9]*"))) if learned_from else (),
        asked_anew=anew,
        paths=_paths_naming(ledger, subjects),
    )


def erase(
    root: Path,
    subjects: Subjects,
    columns: IdColumns,
    clock: Callable[[], datetime],
    settle: Callable[[], None] = lambda: None,
) -> dict[str, object]:
    """The finished report, which is also stored in `erasures/`. Call it under the writer lock.

    `settle` has the same done wherever else the warehouse lies; the erasure counts as finished once it has. Raises
    CorruptWarehouse for a damaged file, after which nothing but the bar is done.
    """
    now = clock()
    add_erased(root, subjects.users, subjects.items)
    survey = survey_erasure(root, subjects, columns)
    path, report = _begun(root, subjects, survey, now)
    _rewrite_tables(root, subjects, survey, path.stem, now)
    report["snapshot"] = _rewrite_features(root, survey, path.stem, now)
    _drop_texts(root, subjects, path.stem, now)
    # Superseded files and those of retired snapshots may name the erased: no grace for whoever reads them still.
    collect_garbage(root, keep=len(read_manifest(root).snapshots), grace=timedelta(0), now=_END_OF_TIME)
    settle()
    report["finished_at"] = clock().isoformat()
    write_json(path, report)
    return report


def erasures(root: Path) -> list[dict[str, object]]:
    """The reports of all erasures, oldest first; `finished_at` is null in one that was interrupted."""
    return [read_json(path, "report of an erasure", SCHEMA_VERSION) for path in _report_files(root)]


def _begun(root: Path, subjects: Subjects, survey: Survey, now: datetime) -> tuple[Path, dict[str, object]]:
    """Where the report stands, and what it says so far: what the first attempt found, if this one completes it."""
    salt = read_erased(root).salt
    who = {
        "users": sorted(erased_digest(salt, "user", user) for user in subjects.users),
        "items": sorted(erased_digest(salt, "item", item) for item in subjects.items),
    }
    found = _report_files(root)
    for path in found:
        report = read_json(path, "report of an erasure", SCHEMA_VERSION)
        if report["finished_at"] is None and {name: report[name] for name in who} == who:
            return path, report
    number = 1 + max((int(path.stem) for path in found), default=0)
    report = {
        "schema_version": SCHEMA_VERSION,
        "erasure": number,
        "started_at": now.isoformat(),
        "finished_at": None,
        **who,
        **survey.counts(),
    }
    path = root / FOLDER / f"{number:06d}.json"
    write_json(path, report)
    return path, report


def _report_files(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob("*.json") if path.stem.isdigit())


def _rewrite_tables(root: Path, subjects: Subjects, survey: Survey, erasure: str, now: datetime) -> None:
    """One commit that replaces the files with concerned rows in every table that lists them."""
    ledger, change = Ledger(root), edits(subjects)
    replaced: dict[str, str | None] = {}
    number = len(ledger.commits()) + 1
    for table, files in survey.rows.items():
        for place, (path, rows) in enumerate(files.items()):
            # The bucket of a file of open partitions is told by its name.
            bucket = search(r"-b\d+$", path.stem)
            name = f"erase-{erasure}-{number:08d}-{place:06d}{bucket[0] if bucket else ''}.parquet"
            ref = rewrite(path, path.with_name(name), rows, change.get(table))
            replaced[str(path)] = None if ref is None else ref.path
    add: dict[str, list[str]] = {}
    remove: dict[str, list[str | Path]] = {}
    for table in _tables(ledger):
        for path in ledger.files(table):
            if str(path) in replaced:
                remove.setdefault(table, []).append(path)
                written = replaced[str(path)]
                add.setdefault(table, []).extend([] if written is None else [written])
    if survey.pools:
        remove["pools"] = list(survey.pools)
    if remove:
        ledger.commit("erase", add=add, remove=remove, stats={"erasure": int(erasure)}, now=now)


def _rewrite_features(root: Path, survey: Survey, erasure: str, now: datetime) -> str | None:
    """The id of the current snapshot, once it and all others that readers can see are without concerned rows."""
    manifest = read_manifest(root)
    current = manifest.current_snapshot()
    if survey.snapshots and current is not None:
        if current.snapshot_id in survey.snapshots:
            current = _cleaned(root, manifest, current, survey, erasure, now)
        kept = [snapshot for snapshot in manifest.snapshots if snapshot.snapshot_id not in survey.snapshots]
        if current.snapshot_id not in {snapshot.snapshot_id for snapshot in kept}:
            kept.append(current)
        gone = set(survey.snapshots)
        write_manifest(
            root,
            Manifest(
                current=current.snapshot_id,
                snapshots=tuple(kept),
                pinned=manifest.pinned - gone,
                retired={name: at for name, at in manifest.retired.items() if name not in gone},
            ),
        )
    # Also where the manifest needs no change: an attempt before this one may have ended between the two.
    catalog.rebuild(root)
    return None if current is None else current.snapshot_id


def _cleaned(
    root: Path, manifest: Manifest, current: Snapshot, survey: Survey, erasure: str, now: datetime
) -> Snapshot:
    """A snapshot like `current` without the concerned rows, whose new files are written."""
    number = 1 + max(int(snapshot.snapshot_id[:8]) for snapshot in manifest.snapshots)
    snapshot_id = f"{number:08d}-{digest([current.snapshot_id, erasure, now])[:8]}"
    tables: dict[str, tuple[FileRef, ...]] = {}
    for table, refs in current.tables.items():
        left: list[FileRef] = []
        for place, ref in enumerate(refs):
            path = root.resolve() / ref.path
            rows = survey.features.get(table, {}).get(path)
            if rows is None:
                left.append(ref)
                continue
            written = rewrite(path, path.with_name(f"{snapshot_id}-{place:06d}.parquet"), rows)
            if written is not None:
                name = Path(written.path).relative_to(root.resolve()).as_posix()
                left.append(replace(written, path=name, contract=ref.contract))
        tables[table] = tuple(left)
    stats = {table: sum(ref.rows for ref in tables[table]) for table in tables}
    return Snapshot(
        snapshot_id=snapshot_id,
        created_at=now,
        # The one before it is gone.
        parent=None,
        tables=tables,
        stats={
            table: {
                "rows": rows,
                "rows_added": 0,
                "augment_dim": current.augment_dim(table) if rows else 0,
            }
            for table, rows in stats.items()
        },
        # Not the record of what it was published from: the next publication is to look at everybody.
        lineage={name: value for name, value in current.lineage.items() if name != "inputs"}
        | {"erasure": int(erasure)},
    )


def _drop_texts(root: Path, subjects: Subjects, erasure: str, now: datetime) -> None:
    """Rewrite, each in one step, the files of knowledge and embeddings that hold rows of requests that are gone.

    Where no row would be left the ledger gives up the file instead, which is garbage from then on. Lines of batch files
    that somebody left in the warehouse go as well.
    """
    ledger = Ledger(root)
    with connect() as con:
        open_traces(con, ledger, segments(ledger, "knowledge"), subjects)
        remove: dict[str, list[str | Path]] = {}
        for table in SEGMENTED:
            named = set(ledger.files(table))
            for path, rows in _orphans(con, ledger, table).items():
                if path in named and len(rows) == pq.read_metadata(path).num_rows:
                    remove.setdefault(table, []).append(path)
                else:
                    rewrite(path, path, rows)
        if remove:
            ledger.commit("erase", add={}, remove=remove, stats={"erasure": int(erasure)}, now=now)
        batches = sorted(root.rglob("[!.]*.jsonl"))
        if batches:
            live = {key for (key,) in con.execute("SELECT request_key FROM live_keys").fetchall()}
            for path in batches:
                _drop_lines(path, live)


def _drop_lines(path: Path, live: Collection[str]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _custom_id(line) is None or _custom_id(line) in live]
    if len(kept) < len(lines):
        with replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))


def _custom_id(line: bytes) -> str | None:
    """The key of the request that a line of a batch file is about."""
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    key = found.get("custom_id") if isinstance(found, dict) else None
    return key if isinstance(key, str) else None


def _tables(ledger: Ledger) -> list[str]:
    return list(dict.fromkeys(table for commit in ledger.commits() for table in commit.add))


def _all_files(root: Path, manifest: Manifest, table: str) -> list[Path]:
    """The files of a public table in any snapshot, each once."""
    names = dict.fromkeys(ref.path for snapshot in manifest.snapshots for ref in snapshot.tables[table])
    return [root.resolve() / name for name in names]


def _snapshots_with(root: Path, manifest: Manifest, files: Collection[Path]) -> list[str]:
    return [
        snapshot.snapshot_id
        for snapshot in manifest.snapshots
        if any(root.resolve() / ref.path in files for refs in snapshot.tables.values() for ref in refs)
    ]


def _orphans(con: duckdb.DuckDBPyConnection, ledger: Ledger, table: str) -> dict[Path, Rows]:
    """Rows of knowledge or embeddings whose request goes or is gone.

    A text without any request (of an interrupted import) cannot be told from one of the erased, so it goes as well; the
    next import of its file brings it again.
    """
    condition = "request_key NOT IN (SELECT request_key FROM live_keys)"
    return rows_where(con, segments(ledger, table), condition, grown=True)


def _pools_of(con: duckdb.DuckDBPyConnection, ledger: Ledger) -> list[Path]:
    """The pools that may hold a text that goes: those made after the oldest of these was written."""
    [(oldest,)] = con.execute(
        "SELECT epoch_us(min(created_at)) FROM stored_knowledge "
        "WHERE request_key NOT IN (SELECT request_key FROM live_keys)"
    ).fetchall()
    if oldest is None:
        return []
    made = {path: commit.created_at for commit in ledger.commits() for path in commit.add.get("pools", ())}
    root = ledger.root.resolve()
    return [root / path for path in _live_pools(ledger) if made[path].timestamp() * 1e6 >= oldest]


def _live_pools(ledger: Ledger) -> list[str]:
    return [path.relative_to(ledger.root.resolve()).as_posix() for path in ledger.files("pools")]


def _paths_naming(ledger: Ledger, subjects: Subjects) -> int:
    """How many names of input files in the ledger have an erased id as a part: those are not ours to change."""
    everyone = subjects.users | subjects.items
    names = {
        source["path"]
        for commit in ledger.commits()
        for sources in cast("Mapping[str, list[dict[str, Any]]]", commit.stats.get("sources", {})).values()
        for source in sources
    }
    return sum(any(piece in everyone for part in Path(name).parts for piece in _parts(part)) for name in names)


def _parts(name: str) -> set[str]:
    stem = name.split(".", 1)[0]
    return {name, stem, *stem.split("="), *pieces(stem.replace("_", " ").replace("-", " "))}
