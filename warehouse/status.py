"""What a warehouse holds, counted from its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from warehouse.answers import answers_view
from warehouse.erase import erasures
from warehouse.inputs import REJECTED
from warehouse.ledger import Ledger, existing_ledger
from warehouse.schemas import BEHAVIOURS, ITEM_VERSIONS, PARTITIONS, REQUESTS
from warehouse.segments import segments
from warehouse.snapshot import read_manifest
from warehouse.sql import connect, parquet_view
from warehouse.store import read_json


def warehouse_status(root: Path) -> dict[str, object]:
    """Counts of everything stored under `root`; `users` and `items` are distinct ids, `requests_pending` unpaid calls.

    `knowledge` counts answered calls, `tokens_in` and `tokens_out` all their attempts.

    Raises WarehouseNotFound where there is no warehouse.
    """
    ledger = existing_ledger(root)
    published = read_manifest(root)
    with connect() as con:
        for name, schema in {
            "behaviours": BEHAVIOURS,
            "items": ITEM_VERSIONS,
            "partitions": PARTITIONS,
            "requests": REQUESTS,
            "rejected": REJECTED,
        }.items():
            parquet_view(con, name, ledger.files(name), schema)
        answers_view(con, segments(ledger, "knowledge"))
        counts = con.sql(
            """
            SELECT (SELECT count(*) FROM behaviours) AS events,
                   (SELECT count(DISTINCT user_id) FROM behaviours) AS users,
                   (SELECT count(DISTINCT item_id) FROM items) AS items,
                   (SELECT count(*) FROM partitions) AS partitions,
                   (SELECT count(DISTINCT request_key) FROM requests
                    WHERE request_key NOT IN (SELECT request_key FROM answers)) AS requests_pending,
                   (SELECT count(*) FROM answers) AS knowledge,
                   (SELECT count(*) FROM stored_knowledge WHERE attempt > 0) AS second_attempts,
                   (SELECT coalesce(sum(tokens_in), 0)::BIGINT FROM stored_knowledge) AS tokens_in,
                   (SELECT coalesce(sum(tokens_out), 0)::BIGINT FROM stored_knowledge) AS tokens_out,
                   (SELECT count(*) FROM rejected) AS rejected
            """
        ).to_arrow_table()
        statuses = con.execute("SELECT status, count(*) FROM answers GROUP BY status ORDER BY status").fetchall()
    result: dict[str, object] = dict(counts.to_pylist()[0])
    result["knowledge_by_status"] = dict(statuses)
    result["pool"] = _last(ledger, "pool", ("digest", "texts", "tokens", "bytes_per_token"))
    result["speculation"] = _last(ledger, "generate", ("speculation",)).get("speculation", {})
    result["groups"] = _last(ledger, "groups", ("generation", "as_of"))
    result["spending"] = _newest_spending(root)
    result["erasures"] = _erasures(root)
    result["snapshots"] = len(published.listed)
    result["current_snapshot"] = published.current
    return result


def _erasures(root: Path) -> dict[str, object]:
    """How many erasures there were, and the groups and adapters that knew somebody who is gone; {} without any."""
    found = erasures(root)
    if not found:
        return {}
    summary: dict[str, object] = {"begun": len(found), "finished": sum(one["finished_at"] is not None for one in found)}
    for kind in ("marked_groups", "marked_adapters"):
        summary[kind] = sorted({name for one in found for name in cast("list[str]", one[kind])})
    return summary


def _newest_spending(root: Path) -> dict[str, object]:
    """The newest period with a budget, and what it has spent; {} where no budget was ever set."""
    records = sorted((root / "spending").glob("[!.]*.json"), key=lambda path: path.stat().st_mtime)
    if not records:
        return {}
    found = read_json(records[-1], "spending record", 1)
    return {name: found[name] for name in ("period", "calls", "tokens", "open_calls") if name in found}


def _last(ledger: Ledger, kind: str, names: Sequence[str]) -> dict[str, object]:
    """What the newest commit of a kind recorded under `names`; {} without one."""
    stats = next((commit.stats for commit in reversed(ledger.commits()) if commit.kind == kind), {})
    return {name: stats[name] for name in names if name in stats}


def snapshot_list(root: Path) -> list[dict[str, object]]:
    """One row per snapshot, oldest first: id, time, rows and files per table, whether readers see it, whether pinned.

    Raises WarehouseNotFound where there is no warehouse.
    """
    existing_ledger(root)
    manifest = read_manifest(root)
    return [
        {
            "snapshot_id": snapshot.snapshot_id,
            "created_at": snapshot.created_at.isoformat(),
            **{table: stats["rows"] for table, stats in snapshot.stats.items()},
            "files": sum(len(files) for files in snapshot.tables.values()),
            "current": snapshot.snapshot_id == manifest.current,
            "pinned": snapshot.snapshot_id in manifest.pinned,
        }
        for snapshot in manifest.listed
    ]
