"""The `quality` verb: what the gate said of the stored texts, by status, with samples to read, and which text many
share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from flows.config import Config
from prompts.render import Kind
from warehouse.answers import answers_view
from warehouse.ledger import existing_ledger
from warehouse.schemas import REQUESTS
from warehouse.segments import segments
from warehouse.sql import connect, parquet_view

_SAMPLE_CHARS = 240

# Of at least so many usable texts about single users or items, one text may stand for this share before it is told.
# Of the other kinds an equal text for many is right: that nothing has changed, say.
_FEW, _SHARE = 20, 0.1
_TOLD = (str(Kind.USER_SUMMARY), str(Kind.ITEM_FACTS))


def shared_texts(con: duckdb.DuckDBPyConnection) -> list[str]:
    """Per kind what is to be said of its most frequent text, where many users or items share it word for word: it
    cannot tell them apart, and the model may not fit the scenario. Reads `judged` (kind, status, text)."""
    rows = con.execute(
        """
        WITH counted AS (
            SELECT kind, hash(text) AS code, count(*) AS shared, sum(shared) OVER (PARTITION BY kind) AS of_kind
            FROM judged WHERE status = 'ok' AND list_contains($kinds, kind) GROUP BY kind, code
            QUALIFY row_number() OVER (PARTITION BY kind ORDER BY shared DESC, code) = 1
        )
        SELECT kind, any_value(text), any_value(shared), any_value(of_kind)
        FROM counted JOIN judged USING (kind) WHERE hash(text) = code AND of_kind >= $few AND shared > $share * of_kind
        GROUP BY kind ORDER BY kind
        """,
        {"kinds": list(_TOLD), "few": _FEW, "share": _SHARE},
    ).fetchall()
    return [
        f"{shared} of {of_kind} {kind} texts are word for word the same ({_shown(text)!r}) and tell nobody apart: does "
        "the model know what the scenario asks?"
        for kind, text, shared, of_kind in rows
    ]


def shared_among(knowledge: Sequence[Path], prompt_versions: Mapping[str, str]) -> list[str]:
    """What `shared_texts` says of the answers in these files to the prompts of `prompt_versions` (by kind)."""
    versions = pa.table({"kind": list(prompt_versions), "prompt_version": list(prompt_versions.values())})
    with connect() as con:
        answers_view(con, knowledge)
        con.register("versions", versions)
        con.execute(
            "CREATE TEMP VIEW judged AS SELECT kind, status, text FROM answers JOIN versions USING (prompt_version)"
        )
        return shared_texts(con)


def quality_report(config: Config, samples: int) -> dict[str, object]:
    """Texts in use by status, and by kind and status; which text many share; of every status but `ok` some samples with
    the gate's reason.

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
        shared = shared_texts(con)
    by_kind: dict[str, dict[str, int]] = {}
    for kind, status, count in kinds:
        by_kind.setdefault(kind or "unknown", {})[status] = count
    found: dict[str, list[str]] = {}
    for status, kind, entity, reason, text in picked:
        found.setdefault(status, []).append(f"{kind} {entity}: {reason or ''} | {_shown(text)}")
    return {
        "texts": sum(count for _, count in counts),
        "by_status": dict(counts),
        "by_kind": by_kind,
        "second_attempts_in_use": retried,
        "mended_by_a_second_attempt": mended,
        "shared": shared,
        "samples": found,
    }


def _shown(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= _SAMPLE_CHARS else f"{shown[:_SAMPLE_CHARS]}..."
