"""The verbs that exchange requests and texts with the world outside: `requests export` and `import knowledge`."""

import logging
from collections.abc import Collection, Iterable
from datetime import datetime
from pathlib import Path

import orjson
import pyarrow as pa

from augment.budget import Meter
from augment.engine.config import OpenAIConfig
from augment.interchange.accept import Accepted, accept_batch, accept_texts
from augment.interchange.batch import export_batch, read_batch_results
from augment.interchange.faults import FaultReason, ImportFault, count_faults
from augment.interchange.members import read_members
from augment.interchange.subjects import find_subjects
from augment.interchange.texts import read_texts
from augment.scope import Scope
from flows import asking, grouping, stages
from flows.config import Config
from flows.run import Run, closing_run
from warehouse.erased import Side, read_erased
from warehouse.errors import InputError
from warehouse.inputs import NOTHING, REJECTED, Reason
from warehouse.lock import writer_lock
from warehouse.schemas import BEHAVIOURS, KNOWLEDGE, REQUESTS
from warehouse.sql import connect, parquet_view
from warehouse.store import write_table

log = logging.getLogger("lorestream")


def export_requests(config: Config, out: Path, limit_users: int | None = None) -> dict[str, object]:
    """Write the calls that a run would make now as OpenAI batch files, and say which; plans them first.

    What has been exported stays pending until its results are imported. Raises InputError when nothing is pending.
    """
    scope = Scope(limit_users=limit_users)
    with closing_run(config, scope) as run, writer_lock(run.root, "lorestream requests export"):
        stages.ingest(run)
        stages.partition(run)
        grouping.form_groups(run)
        # What builds on answers can be exported once these are imported.
        for wave in range(2 if config.knowledge.waves else 1):
            asking.plan(run, wave)
        meter = Meter(run.root, config.budget, run.clock(), config.engine.max_new_tokens)
        choice = asking.choose_calls(run, run.pending, meter)
        if not choice.granted.num_rows:
            raise InputError(
                f"No call of the warehouse {run.root} is pending within the budget, so there is nothing to export. "
                "`lorestream run --dry-run` shows what is planned."
            )
        field = config.engine.max_tokens_field if isinstance(config.engine, OpenAIConfig) else "max_tokens"
        made = export_batch(choice.granted, run.engine.model, run.engine.sampling, out, max_tokens_field=field)
        return {
            "requests": made.requests,
            "files": [str(file) for file in made.files],
            "waiting": choice.waiting.num_rows,
            "notes": run.report.notes,
        }


def import_knowledge(
    config: Config, file: Path, entity: str | None, members: Path | None, as_of: datetime | None
) -> dict[str, object]:
    """Take in texts that were made elsewhere: the results of a batch (.jsonl), or a table of texts.

    `members` is a table of who is in which group, of a clustering that saw events up to `as_of` (default: the newest
    event stored, so that nothing of it reaches back). The texts are judged by the same gate, encoded and published by
    the next run. What is left out stands in `rejected` with its reason.
    """
    with closing_run(config, Scope()) as run, writer_lock(run.root, "lorestream import knowledge"):
        stages.ingest(run)
        stages.partition(run)
        faults: list[ImportFault] = []
        found: dict[str, object] = {"file": str(file)}
        if members is not None:
            found |= _import_groups(run, members, as_of, faults)
        accepted = _accept(run, file, entity)
        faults += accepted.faults
        _store(run, file, accepted, faults)
        kinds = set(accepted.accepted) - {str(kind) for kind in config.knowledge.kinds}
        notes = list(run.report.notes)
        if kinds:
            notes.append(
                f"{', '.join(sorted(kinds))} are stored, but knowledge.mode = {config.knowledge.mode!r} with cascade = "
                f"{config.knowledge.cascade!r} does not use them"
            )
        return found | {
            "accepted": sum(accepted.accepted.values()),
            "accepted_by_kind": accepted.accepted,
            "unchanged": accepted.unchanged,
            "by_status": accepted.statuses,
            "rejected": len(faults),
            "rejected_by_reason": dict(count_faults(faults)),
            "first_rejected": [f"row {f.row}: {f.reason} ({f.detail})" for f in faults[:5]],
            "notes": notes,
            "next": "`lorestream run` encodes and publishes them.",
        }


def _import_groups(run: Run, members: Path, as_of: datetime | None, faults: list[ImportFault]) -> dict[str, object]:
    """Store the groups as another generation."""
    newest = grouping.newest_generation(run)
    groups = read_members(members, newest + 1, as_of or _newest_event(run), run.clock())
    faults += groups.faults
    tables = {"groups": groups.groups, "group_members": _without_erased(run, groups.members, faults)}
    add = {name: [write_table(run.file(name), table).path] for name, table in tables.items() if table.num_rows}
    stats = {"generation": newest + 1, "imported_from": str(members), "groups": groups.groups.num_rows}
    run.ledger.commit("groups", add=add, stats=stats, now=run.clock())
    return {"groups": groups.groups.num_rows, "members": tables["group_members"].num_rows}


def _without_erased(run: Run, members: pa.Table, faults: list[ImportFault]) -> pa.Table:
    """The members that were not erased; the others are added to `faults`."""
    erased = read_erased(run.root)
    sides: list[Side] = ["item" if kind == "group_items" else "user" for kind in members.column("kind").to_pylist()]
    ids = members.column("entity_id").to_pylist()
    kept = [not erased.holds(side, entity) for side, entity in zip(sides, ids, strict=True)]
    faults += [ImportFault(0, FaultReason.UNKNOWN_ID, ids[row]) for row, keep in enumerate(kept) if not keep]
    return members.filter(pa.array(kept, pa.bool_()))


def _accept(run: Run, file: Path, entity: str | None) -> Accepted:
    answered = _keys("knowledge", run.knowledge_files, KNOWLEDGE)
    judge = run.gate.judge
    if file.suffix == ".jsonl":
        planned = run.ledger.files("requests")
        with connect() as con:
            parquet_view(con, "requests", planned, REQUESTS)
            table: pa.Table = con.sql("FROM requests").to_arrow_table()
        return accept_batch(read_batch_results(file), table, run.identity, answered, judge, run.clock())
    texts = list(read_texts(file, entity))
    subjects = find_subjects(texts, run.planning_sources)
    asked = _keys("requests", run.ledger.files("requests"), REQUESTS)
    return accept_texts(texts, subjects, asked, answered, judge, run.clock())


def _store(run: Run, source: Path, accepted: Accepted, faults: Iterable[ImportFault]) -> None:
    """Texts first: a request without a text would be asked, a text without a request waits for the next import."""
    if accepted.knowledge.num_rows:
        write_table(run.root / "knowledge" / f"{run.name}-import.parquet", accepted.knowledge)
    add: dict[str, list[str | Path]] = {}
    if accepted.requests.num_rows:
        add["requests"] = [write_table(run.file("requests", "import"), accepted.requests).path]
    erased = read_erased(run.root)
    rows = [
        {"table": "knowledge", "source": str(source), "reason": str(Reason.ERASED), "row": NOTHING}
        if erased.named_in(fault.detail)
        else {
            "table": "knowledge",
            "source": str(source),
            "reason": str(fault.reason),
            "row": orjson.dumps({"row": fault.row, "detail": fault.detail}).decode(),
        }
        for fault in faults
    ]
    if rows:
        add["rejected"] = [write_table(run.file("rejected", "knowledge"), pa.Table.from_pylist(rows, REJECTED)).path]
    stats = {"accepted": accepted.accepted, "statuses": accepted.statuses, "rejected": len(rows)}
    run.ledger.commit("import", add=add, stats=stats, now=run.clock())


def _keys(name: str, files: Collection[Path], schema: pa.Schema) -> set[str]:
    with connect() as con:
        parquet_view(con, name, list(files), schema, grown=True)
        return {key for (key,) in con.execute(f"SELECT DISTINCT request_key FROM {name}").fetchall()}


def _newest_event(run: Run) -> datetime:
    with connect() as con:
        parquet_view(con, "behaviours", run.ledger.files("behaviours"), BEHAVIOURS)
        newest = con.sql("SELECT max(ts) AS ts FROM behaviours").to_arrow_table()["ts"][0].as_py()
    if newest is None:
        raise InputError(
            "The warehouse holds no event, so it cannot be said from when on the groups are known. Give --as-of."
        )
    found: datetime = newest
    return found
