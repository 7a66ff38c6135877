"""Why a value is what it is: the row that a moment sees, and the events, prompts, texts and adapter that made it.

The row itself is public; what lies behind it is read from the warehouse's internal tables, which a copy of the public
ones lacks.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import duckdb
import orjson

from warehouse.clock import ENTITY, Clock, instant_us, newest, visible_us
from warehouse.errors import UsageError
from warehouse.ledger import Ledger
from warehouse.schemas import BEHAVIOURS, FEATURES, ITEM_VERSIONS, PARTITIONS, Rung
from warehouse.snapshot import Manifest, Snapshot
from warehouse.sql import connect, parquet_view, records
from warehouse.traced import Provenance, Record, Trace

_TABLE = {entity: table for table, entity in ENTITY.items()}


def explain_row(
    root: Path,
    manifest: Manifest,
    snapshot: Snapshot,
    entity: str,
    entity_id: str,
    at: datetime,
    clock: Clock = "event",
) -> dict[str, Any]:
    """What a user or item (`entity`: user_id or item_id) had at the moment `at`, and everything that made it:

    - row: the feature row that a join at `at` finds, augment vector included; None where there was none
    - partitions: (users) the sealed partitions behind it with their events; version: (items) the version described
    - texts: the calls about these with prompt, answer, model and sampling; `used` says which are in the vector
    - groups: the groups whose texts stand in, where the rung is `group` or `global`
    - adapter: what made the vector from the texts' embeddings
    - traced: whether `texts` are, by their digest, exactly the texts that the row was made of; notes say why not

    A moment without a zone is in UTC. Raises UsageError for an unknown clock, CorruptWarehouse for a damaged table.
    """
    if clock not in get_args(Clock):
        raise UsageError(f"explain(clock={clock!r}) is unknown; it is one of {', '.join(get_args(Clock))}.")
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    with connect() as con:
        row = _row(con, snapshot.files(root, _TABLE[entity]), entity, entity_id, at, clock)
        found: dict[str, Any] = {
            entity: entity_id,
            "at": at,
            "clock": clock,
            "snapshot_id": snapshot.snapshot_id,
            "row": row,
            "notes": [],
        }
        if row is None:
            found["notes"].append(_why_no_row(con, entity, entity_id, clock))
            return found
        lineage = {made.snapshot_id: made.lineage for made in manifest.snapshots}.get(row["snapshot_id"], {})
        trace = Provenance.at(con, root, row, entity, lineage).trace()
        if entity == "user_id":
            numbers = [text["partition_no"] for text in trace.texts if text["partition_no"] is not None]
            found["partitions"] = _partitions(con, root, entity_id, row, numbers)
        else:
            found["version"] = _version(con, root, entity_id, row)
    found |= {"texts": trace.texts, "groups": trace.groups, "adapter": _adapter(root, row), "traced": trace.complete}
    found["notes"] += _notes(root, row, trace)
    return found


def _row(
    con: duckdb.DuckDBPyConnection, files: Sequence[Path], entity: str, entity_id: str, at: datetime, clock: Clock
) -> Record | None:
    parquet_view(con, "features", files, FEATURES[_TABLE[entity]], grown=True)
    rows = records(
        con,
        f"SELECT * FROM features WHERE {entity} = ? AND {visible_us(clock)} <= ? "
        f"ORDER BY valid_from DESC, {newest(entity)} LIMIT 1",
        [entity_id, instant_us(at)],
    )
    return rows[0] if rows else None


def _why_no_row(con: duckdb.DuckDBPyConnection, entity: str, entity_id: str, clock: Clock) -> str:
    [(rows, first)] = con.execute(
        f"SELECT count(*), make_timestamptz(min({visible_us(clock)})) FROM features WHERE {entity} = ?", [entity_id]
    ).fetchall()
    if not rows:
        return f"no row of {entity_id!r} in this snapshot: it has no sealed partition, no group, or no published text"
    return f"the first row is seen from {first.isoformat()} on by the {clock} clock"


def _partitions(
    con: duckdb.DuckDBPyConnection, root: Path, user: str, row: Mapping[str, Any], texts_of: Sequence[int]
) -> list[Record]:
    """The user's partitions that texts are about and the row's own, with their events in order."""
    ledger = Ledger(root)
    parquet_view(con, "partitions", ledger.files("partitions"), PARTITIONS)
    parquet_view(con, "items", ledger.files("items"), ITEM_VERSIONS)
    parquet_view(con, "behaviours", ledger.files("behaviours"), BEHAVIOURS)
    found = records(
        con,
        "SELECT * FROM partitions WHERE user_id = ? AND list_contains(?, partition_no) ORDER BY partition_no",
        [user, [row["partition_no"], *texts_of]],
    )
    titles = dict(
        con.execute(
            "SELECT item_id, last(title ORDER BY valid_from, created_at) FROM items "
            "WHERE list_contains(?, item_id) GROUP BY item_id",
            [[item for partition in found for item in partition["items"]]],
        ).fetchall()
    )
    times = con.execute(
        "SELECT item_id, value, ts, action FROM behaviours WHERE user_id = ? ORDER BY ts", [user]
    ).fetchall()
    for partition in found:
        keys = list(zip(partition.pop("items"), partition.pop("values"), strict=True))
        seen: dict[tuple[str, float], list[tuple[datetime, str]]] = {}
        for item, value, ts, action in times:
            if partition["opened_at"] <= ts <= partition["sealed_at"]:
                seen.setdefault((item, value), []).append((ts, action))
        partition["events"] = [
            {"item_id": item, "title": titles.get(item), "value": value, **_when(seen, keys, place)}
            for place, (item, value) in enumerate(keys)
        ]
    return found


def _when(
    seen: Mapping[tuple[str, float], Sequence[tuple[datetime, str]]], keys: Sequence[tuple[str, float]], place: int
) -> Record:
    """Time and action of an event; None where an equal event arrived late, so that it could be either."""
    key = keys[place]
    candidates = seen.get(key, ())
    if len(candidates) != keys.count(key):
        return {"ts": None, "action": None}
    ts, action = candidates[keys[:place].count(key)]
    return {"ts": ts, "action": action}


def _version(con: duckdb.DuckDBPyConnection, root: Path, item: str, row: Mapping[str, Any]) -> Record | None:
    parquet_view(con, "items", Ledger(root).files("items"), ITEM_VERSIONS)
    rows = records(con, "SELECT * FROM items WHERE item_id = ? AND digest = ? LIMIT 1", [item, row["source_digest"]])
    for version in rows:
        version["attributes"] = orjson.loads(version["attributes"])
    return rows[0] if rows else None


def _adapter(root: Path, row: Mapping[str, Any]) -> Record:
    """What is known of the adapter of a row: its version, and what its folder says of how it was made."""
    version = row["adapter_version"]
    for path in sorted((root / "adapters").glob("[0-9]*/meta.json")):
        meta: Record = orjson.loads(path.read_bytes())
        if meta.get("version") == version:
            kept = ("kind", "encoder_id", "train_from", "valid_from", "holdout_from", "train_samples", "weights_digest")
            return {
                "version": version,
                "folder": path.parent.relative_to(root).as_posix(),
                **{k: meta.get(k) for k in kept},
            }
    return {"version": version}


def _notes(root: Path, row: Mapping[str, Any], trace: Trace) -> list[str]:
    if not Ledger(root).commits():
        return ["only the public tables are here: what lies behind the row is in the warehouse that published it"]
    if row["rung"] == Rung.NONE:
        return ["no usable text stands behind the row, so it has no vector"]
    if not trace.complete:
        return ["the texts found are not those that the row names by its digest: some were removed, or made elsewhere"]
    return []
