"""The `quality` verb: what the gate said of the stored texts, by status, with samples to read."""

from flows.config import Config
from warehouse.answers import answers_view
from warehouse.ledger import existing_ledger
from warehouse.schemas import REQUESTS
from warehouse.segments import segments
from warehouse.sql import connect, parquet_view

_SAMPLE_CHARS = 240


def quality_report(config: Config, samples: int) -> dict[str, object]:
    """Texts in use by status, and by kind and status; of every status but `ok` some samples with the gate's reason.

    A call counts once, with the attempt that is used. Raises WarehouseNotFound.
    """
    ledger = existing_ledger(config.root)
    with connect() as con:
        answers_view(con, segments(ledger, "knowledge"))
        parquet_view(con, "requests", ledger.files("requests"), REQUESTS)
        con.execute(
            "CREATE TEMP TABLE judged AS SELECT status, reason, text, attempt, r.kind, r.entity_id "
            "FROM answers LEFT JOIN (SELECT DISTINCT ON (request_key) request_key, kind, entity_id FROM requests "
            "ORDER BY request_key, entity_id) r USING (request_key)"
        )
        counts = con.execute("SELECT status, count(*) FROM judged GROUP BY status ORDER BY status").fetchall()
        kinds = con.execute(
            "SELECT kind, status, count(*) FROM judged GROUP BY kind, status ORDER BY kind, status"
        ).fetchall()
        picked = con.execute(
            """
            SELECT status, kind, entity_id, reason, text FROM judged WHERE status <> 'ok'
            QUALIFY row_number() OVER (PARTITION BY status ORDER BY hash(entity_id), kind) <= ?
            ORDER BY status, kind, entity_id
            """,
            [samples],
        ).fetchall()
        [(retried, mended)] = con.execute(
            "SELECT count(*) FILTER (WHERE attempt > 0), count(*) FILTER (WHERE attempt > 0 AND status = 'ok') "
            "FROM judged"
        ).fetchall()
    by_kind: dict[str, dict[str, int]] = {}
    for kind, status, count in kinds:
        by_kind.setdefault(kind or "unknown", {})[status] = count
    found: dict[str, list[str]] = {}
    for status, kind, entity, reason, text in picked:
        shown = " ".join(text.split())
        shown = shown if len(shown) <= _SAMPLE_CHARS else f"{shown[:_SAMPLE_CHARS]}..."
        found.setdefault(status, []).append(f"{kind} {entity}: {reason or ''} | {shown}")
    return {
        "texts": sum(count for _, count in counts),
        "by_status": dict(counts),
        "by_kind": by_kind,
        "second_attempts_in_use": retried,
        "mended_by_a_second_attempt": mended,
        "samples": found,
    }
