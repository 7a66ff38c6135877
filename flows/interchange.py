"""The verbs that exchange requests and texts with the world outside: `requests export` and `import knowledge`."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from augment.budget import Meter
from augment.engine.config import OpenAIConfig
from augment.interchange.accept import Accepted, accept_batch, accept_texts
from augment.interchange.batch import BatchText, export_batch, read_batch_results
from augment.interchange.faults import FaultReason, ImportFault, count_faults
from augment.interchange.members import ImportedGroups, imported_group_id, read_members
from augment.interchange.subjects import find_subjects
from augment.interchange.texts import ImportedText, read_texts
from augment.scope import Scope
from flows import asking, grouping, stages
from flows.config import Config
from flows.run import Run, closing_run
from warehouse.answers import IMPORTED
from warehouse.erased import Side, read_erased
from warehouse.errors import InputError, UsageError
from warehouse.inputs import NOTHING, REJECTED, Reason
from warehouse.schemas import BEHAVIOURS, GROUP_MEMBERS, KNOWLEDGE, REQUESTS
from warehouse.sql import connect, parquet_view
from warehouse.store import read_table, write_table

log = logging.getLogger("lorestream")


def export_requests(config: Config, out: Path, limit_users: int | None = None) -> dict[str, object]:
    """Write the calls that a run would make now as OpenAI batch files, and say which; plans them first.

    What has been exported stays pending until its results are imported. Raises InputError when nothing is pending.
    """
    scope = Scope(limit_users=limit_users)
    with closing_run(config, scope) as run, run.writing("lorestream requests export"):
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
    event stored, so that nothing of it reaches back); the same table again is the same groups. The texts are judged by
    the same gate, encoded and published by the next run. What is left out stands in `rejected` with its reason. Both
    files are read before anything is stored, so that one which cannot be used leaves nothing behind. Raises UsageError
    for an option that would have no effect.
    """
    if entity is not None and file.suffix == ".jsonl":
        raise UsageError(f"The calls that {file} answers say what they are about. Leave --entity {entity} out.")
    if as_of is not None and members is None:
        raise UsageError(
            f"--as-of {as_of} says when groups are known, and there are no --members. Give both or neither."
        )
    with closing_run(config, Scope()) as run, run.writing("lorestream import knowledge"):
        stages.ingest(run)
        stages.partition(run)
        faults: list[ImportFault] = []
        found: dict[str, object] = {"file": str(file)}
        batch = file.suffix == ".jsonl"
        results = list(read_batch_results(file)) if batch else []
        texts = [] if batch else list(read_texts(file, entity))
        if members is not None:
            found |= _import_groups(run, members, as_of, faults)
        accepted = _accept(run, texts, results)
        faults += accepted.faults
        rivals = _rivals(run, accepted)
        if members is None and faults and not accepted.accepted and not accepted.unchanged:
            raise InputError(
                f"No text of {file} can be taken in: {dict(count_faults(faults))}; row {faults[0].row}: "
                f"{faults[0].reason} ({faults[0].detail}). Nothing was stored. Mend the rows and import the file again."
            )
        _store(run, file, accepted, faults)
        kinds = set(accepted.accepted) - {str(kind) for kind in config.knowledge.kinds}
        notes = list(run.report.notes)
        if rivals:
            notes.append(
                f"{rivals} of these are about something that an earlier import has texts about: of usable ones the "
                "newest is used"
            )
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
    """Store the groups as another generation, unless the newest is these groups already."""
    newest = grouping.newest_generation(run)
    groups = read_members(members, newest + 1, as_of or _newest_event(run), run.clock())
    faults += groups.faults
    groups = replace(groups, members=_without_erased(run, groups.members, faults))
    found: dict[str, object] = {"groups": groups.groups.num_rows, "members": groups.members.num_rows}
    if not groups.groups.num_rows:
        raise InputError(
            f"No row of {members} can be a member of a group: {dict(count_faults(groups.faults))}. A file of members "
            "has item, user_positive or user_negative in `entity`, and an `id` and a `group_id` in every row."
        )
    if _is_stored(run, groups, newest, as_of):
        return found | {"groups_unchanged": True}
    tables = {"groups": groups.groups, "group_members": groups.members}
    add: dict[str, list[str | Path]] = {n: [write_table(run.file(n), table).path] for n, table in tables.items()}
    stats = {"generation": newest + 1, "imported_from": str(members), "groups": groups.groups.num_rows}
    run.ledger.commit("groups", add=add, stats=stats, now=run.clock())
    return found


def _without_erased(run: Run, members: pa.Table, faults: list[ImportFault]) -> pa.Table:
    """The members that were not erased; the others are added to `faults`."""
    erased = read_erased(run.root)
    sides: list[Side] = ["item" if kind == "group_items" else "user" for kind in members.column("kind").to_pylist()]
    ids = members.column("entity_id").to_pylist()
    kept = [not erased.holds(side, entity) for side, entity in zip(sides, ids, strict=True)]
    faults += [ImportFault(0, FaultReason.UNKNOWN_ID, ids[row]) for row, keep in enumerate(kept) if not keep]
    return members.filter(pa.array(kept, pa.bool_()))


def _is_stored(run: Run, groups: ImportedGroups, generation: int, as_of: datetime | None) -> bool:
    """Whether `generation` has the same members in the same groups, from the same time on if one is given."""
    stored = read_table(run.ledger.files("group_members"), GROUP_MEMBERS)
    stored = stored.filter(pc.equal(stored["generation"], generation))
    if as_of is not None and set(stored["joined_at"].to_pylist()) != {as_of}:
        return False

    def places(table: pa.Table, number: int) -> set[tuple[str, str, str]]:
        return {
            (row["kind"], row["entity_id"], row["group_id"].removeprefix(imported_group_id(row["kind"], number, "")))
            for row in table.select(["kind", "entity_id", "group_id"]).to_pylist()
        }

    return places(stored, generation) == places(groups.members, generation + 1)


def _accept(
    run: Run, texts: Sequence[ImportedText | ImportFault], results: Sequence[BatchText | ImportFault]
) -> Accepted:
    """What is new in a table of texts, or in the results of a batch where there are some."""
    answered = _keys("knowledge", run.knowledge_files, KNOWLEDGE)
    judge = run.gate.judge
    if results:
        with connect() as con:
            parquet_view(con, "requests", run.ledger.files("requests"), REQUESTS)
            table: pa.Table = con.sql("FROM requests").to_arrow_table()
        return accept_batch(results, table, run.identity, answered, judge, run.clock())
    subjects = find_subjects(texts, run.planning_sources)
    asked = _keys("requests", run.ledger.files("requests"), REQUESTS)
    return accept_texts(texts, subjects, asked, answered, judge, run.clock())


def _store(run: Run, source: Path, accepted: Accepted, faults: Iterable[ImportFault]) -> None:
    """Texts first: a request without a text would be asked, a text without a request waits for the next import."""
    add: dict[str, list[str | Path]] = {}
    if accepted.knowledge.num_rows:
        add["knowledge"] = [write_table(run.root / "knowledge" / f"{run.name}-import.parquet", accepted.knowledge).path]
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


def _rivals(run: Run, accepted: Accepted) -> int:
    """How many of the new texts are about something that a stored imported text is about."""
    with connect() as con:
        parquet_view(con, "requests", run.ledger.files("requests"), REQUESTS)
        con.register("accepted", accepted.requests)
        [(rivals,)] = con.execute(
            "SELECT count(*) FROM accepted a SEMI JOIN requests r ON r.kind = a.kind AND r.entity_id = a.entity_id "
            "AND r.partition_no IS NOT DISTINCT FROM a.partition_no AND starts_with(r.engine_id, $imported)",
            {"imported": IMPORTED},
        ).fetchall()
    found: int = rivals
    return found


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
