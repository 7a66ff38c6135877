"""The stages of a run, each a plain function: call the room that does the work, then record what it wrote.

Every stage starts from what is stored, does only what is missing, and is safe to call again after a crash. The flows
decide order and retries; nothing here knows Prefect.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from adapters.fit import EpochReport
from adapters.knowledge import Stored, item_vectors, user_vectors
from adapters.rows import missing_rows
from adapters.touched import inputs_of, touched_since
from adapters.train import NotTrainable, fit_projection, train_adapter
from adapters.trained import TrainedAdapter
from adapters.training import find_adapter, labelled_samples, shelve_adapter
from augment.embed import embed_pending
from augment.partition import partition_events
from flows.progress import StageProgress
from flows.report import RunReport
from flows.run import Run
from prompts.hygiene import find_template_token
from warehouse.entities import ingest_items, ingest_users
from warehouse.erase import erasures
from warehouse.erased import read_erased
from warehouse.inputs import IngestReport, ingest_behaviours
from warehouse.manifest import publish as publish_tables
from warehouse.schemas import FEATURES, ITEM_VERSIONS, USER_VERSIONS
from warehouse.segments import record_segments
from warehouse.snapshot import read_inputs, read_manifest, write_inputs
from warehouse.store import FileRef, read_table, write_table

log = logging.getLogger("lorestream")


def ingest(run: Run) -> None:
    """New rows of the inputs, checked and stored. Source files that have not changed are not read again."""
    inputs, base, now = run.config.inputs, run.config.base, run.clock()
    limit, erased = inputs.max_rejected_fraction, read_erased(run.root)
    _note_unfinished_erasures(run)
    # What a killed run paid for; and where something paid for is gone, a run ends here.
    record_segments(run.ledger, now)
    with run.timed("ingest"):
        # Items and users stay in memory until everything was checked, so that a refused input leaves nothing behind.
        items = ingest_items(
            inputs.items,
            base,
            read_table(run.ledger.files("items"), ITEM_VERSIONS),
            now,
            partial(find_template_token, special_tokens=run.special_tokens),
            inputs.on_template_tokens,
            limit,
            run.sources_read("items"),
            erased,
        )
        made = [items]
        if inputs.users is not None:
            known = read_table(run.ledger.files("users"), USER_VERSIONS)
            made.append(ingest_users(inputs.users, base, known, now, limit, run.sources_read("users"), erased))
        events = ingest_behaviours(
            inputs.behaviours,
            base,
            run.ledger.files("behaviours"),
            run.file("behaviours"),
            run.file("rejected", "behaviours"),
            limit,
            run.sources_read("behaviours"),
            latest=inputs.latest_event(now),
            erased=erased,
        )
        add = {"behaviours": _present(events.file), "unpartitioned": _present(events.file)}
        rejected = _present(events.rejected_file)
        for entities in made:
            table = entities.report.table
            if entities.versions.num_rows:
                add[table] = [Path(write_table(run.file(table), entities.versions).path)]
            if entities.rejected.num_rows:
                rejected.append(Path(write_table(run.file("rejected", table), entities.rejected).path))
        reports = [events, *(entities.report for entities in made)]
        if any(report.sources for report in reports):
            run.ledger.commit(
                "ingest",
                add={**add, "rejected": rejected},
                stats={"sources": {report.table: [asdict(s) for s in report.sources] for report in reports}},
                now=now,
            )
    _count_ingest(run.report, reports)


def _note_unfinished_erasures(run: Run) -> None:
    """Say so where an erasure was interrupted: only who knows the id can complete it."""
    begun = [str(one["started_at"]) for one in erasures(run.root) if one["finished_at"] is None]
    if begun:
        run.report.notes.append(
            f"an erasure begun at {begun[0]} was interrupted; give the same `lorestream erase` again to complete it"
        )


def _count_ingest(report: RunReport, reports: Sequence[IngestReport]) -> None:
    by_table = {read.table: read for read in reports}
    report.events, report.events_known = by_table["behaviours"].accepted, by_table["behaviours"].known
    report.items = by_table["items"].accepted
    report.users = by_table["users"].accepted if "users" in by_table else 0
    for table, read in by_table.items():
        report.rejected += read.rejected
        if read.sources and not read.read:
            report.notes.append(f"`{table}` holds no row ({', '.join(source.path for source in read.sources)})")
        if read.rejected:
            reasons = ", ".join(f"{reason} {count}" for reason, count in read.reasons.items())
            report.notes.append(f"{read.rejected} of {read.read} rows of `{table}` were rejected ({reasons})")
        if read.duplicates:
            report.notes.append(f"{read.duplicates} rows of `{table}` repeat another row and count once")
        if read.template_tokens:
            report.notes.append(f"{read.template_tokens} items hold chat-template tokens, stripped from every prompt")


def _present(ref: FileRef | None) -> list[Path]:
    return [] if ref is None else [Path(ref.path)]


def partition(run: Run) -> None:
    """Seal what the new events complete (LIBER's streaming partition). Reads new events and open partitions only."""
    files = run.ledger.files("unpartitioned")
    if not files:
        return
    with run.timed("partition"):
        made = partition_events(files, run.ledger.files("open"), run.root, run.name, run.config.partitions)
        run.ledger.commit(
            "partition",
            add={"partitions": made.partition_files, "open": made.open_files},
            remove={"open": made.superseded_files, "unpartitioned": files},
            stats={"events": made.events, "sealed": made.sealed, "users": made.users, "seconds": made.seconds},
            now=run.clock(),
        )
        run.report.partitions += made.sealed


def encode(run: Run, progress: StageProgress) -> None:
    """Give every usable text a vector."""
    with run.timed("encode"):
        made = embed_pending(
            run.ledger.files("requests"),
            run.knowledge_files,
            run.embedding_files,
            run.identity.engine_id,
            run.encoder,
            run.root / "embeddings",
            f"{run.name}-{secrets.token_hex(2)}",
            stored=run.keep_segment,
            progress=lambda done, total, rate: progress.update("encode", done, total, rate, "texts"),
        )
    if made.texts:
        run.report.texts_encoded += made.texts
        run.report.texts_per_s = made.texts_per_s


def adapt(run: Run) -> None:
    """Make sure there is an adapter for this encoder; an existing one is used until `lorestream train` fits another."""
    adapter = find_adapter(run.root, run.encoder.encoder_id, run.config.adapter.out_dim)
    if adapter is None:
        fit_adapter(run)
    else:
        run.report.adapter, run.report.adapter_kind = adapter.meta.version, adapter.meta.kind


def fit_adapter(run: Run) -> None:
    """Train the frozen adapter on the labelled behaviours; without usable labels, fit the label-free projection."""
    users, items = user_vectors(run.stored), item_vectors(run.stored)
    if not (users.has_vector.any() or items.has_vector.any()):
        run.report.notes.append("no usable text yet, so there is nothing to fit an adapter on and nothing to publish")
        return
    config = run.config.adapter
    with run.timed("fit adapter"):
        try:
            samples = labelled_samples(run.labelled_events, users, items, config.history_length)
            adapter = train_adapter(
                samples,
                users.vectors,
                items.vectors,
                config,
                encoder_id=run.encoder.encoder_id,
                texts=users.texts,
                progress=_log_epoch,
            )
        except NotTrainable as error:
            run.report.notes.append(str(error))
            adapter = fit_projection(
                users.known().vectors, items.known().vectors, config, encoder_id=run.encoder.encoder_id
            )
        shelve_adapter(run.root, adapter)
    meta = adapter.meta
    run.report.adapter, run.report.adapter_kind = meta.version, meta.kind
    if meta.best_epoch is not None:
        best = meta.epochs[meta.best_epoch]
        run.report.adapter_measures = best.model_dump(exclude={"epoch", "seconds"})
    run.report.adapter_foretold = {side: round(sum(r2) / len(r2), 4) for side, r2 in meta.foretold.items() if r2}
    run.report.adapter_gates = {side: use.model_dump() for side, use in meta.gates.items()}


def _log_epoch(epoch: EpochReport) -> None:
    log.info(
        "epoch %d: validation AUC %.4f, LogLoss %.4f (%.1f s)",
        epoch.epoch,
        epoch.valid_auc,
        epoch.valid_logloss,
        epoch.seconds,
    )


def publish(run: Run) -> None:
    """Materialise what the current snapshot lacks and publish it; with a new adapter, every row."""
    stored, now = run.stored, run.clock()
    adapter = find_adapter(run.root, stored.encoder_id, run.config.adapter.out_dim)
    current = read_manifest(run.root).current_snapshot()
    assert current is not None, "a warehouse is made with an empty snapshot"
    run.report.snapshot = current.snapshot_id
    if adapter is None:
        return
    replace = current.lineage.get("adapter_version") != adapter.meta.version
    published = {} if replace else {table: current.files(run.root, table) for table in FEATURES}
    with run.timed("publish"):
        inputs = inputs_of(stored, adapter.meta.version)
        only = None if replace else touched_since(stored, inputs, read_inputs(run.root, current))
        snapshot = publish_tables(
            run.root,
            missing_rows(stored, adapter, published, now, only),
            replace=replace,
            now=now,
            lineage={**_lineage(run, stored, adapter), "inputs": write_inputs(run.root, run.name, inputs)},
            checks=run.config.checks,
            keep=run.config.snapshots.keep,
        )
    if snapshot.snapshot_id != current.snapshot_id:
        counts = {table: stats["rows_added"] for table, stats in snapshot.stats.items() if stats["rows_added"]}
        run.report.rows_by_table = dict(Counter(run.report.rows_by_table) + Counter(counts))
        run.report.rows_published += sum(counts.values())
        run.report.snapshot = snapshot.snapshot_id
    # Of a backfill, for which readers need not wait until its last chunk.
    run.save()


def _lineage(run: Run, stored: Stored, adapter: TrainedAdapter) -> dict[str, object]:
    return {
        "run": run.name,
        "model": f"{run.engine.model}@{run.engine.revision}",
        "engine_id": stored.engine_id,
        "prompt_versions": dict(stored.prompt_versions),
        "kinds": list(stored.kinds),
        "encoder_id": stored.encoder_id,
        "adapter_version": adapter.meta.version,
    }
