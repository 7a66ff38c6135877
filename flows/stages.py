"""The stages of a run, each a plain function: call the room that does the work, then record what it wrote.

Every stage starts from what is stored, does only what is missing, and is safe to call again after a crash. The flows
decide order and retries; nothing here knows Prefect.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from adapters.fit import EpochReport
from adapters.knowledge import Stored, item_vectors, user_vectors
from adapters.rows import missing_rows
from adapters.train import NotTrainable, fit_projection, train_adapter
from adapters.trained import TrainedAdapter
from adapters.training import LabelledEvents, check_category, find_adapter, labelled_samples, shelve_adapter
from augment.embed import embed_pending
from augment.encode import TextEncoder
from augment.engine.base import DraftingEngine, Engine
from augment.engine.model import ModelInfo, describe_model
from augment.engine.vllm import VllmEngine
from augment.forecast import forecast_calls
from augment.generate import Status, generate
from augment.partition import partition_events
from augment.plan import EngineIdentity, Scope, Sources, pending_requests, plan_requests
from flows.config import Config
from flows.progress import StageProgress
from flows.report import RunReport
from prompts.hygiene import find_template_token
from prompts.render import Kind, PromptWriter
from prompts.scenario import load_scenario
from warehouse.entities import ingest_items, ingest_users
from warehouse.errors import WarehouseNotFound
from warehouse.inputs import IngestReport, ingest_behaviours
from warehouse.labels import parse_rule
from warehouse.ledger import Ledger
from warehouse.manifest import publish as publish_tables
from warehouse.schemas import FEATURES, ITEM_VERSIONS, USER_VERSIONS
from warehouse.snapshot import read_manifest
from warehouse.sources import SourceFile
from warehouse.store import FileRef, read_table, write_table

log = logging.getLogger("lorestream")


def utc_now() -> datetime:
    return datetime.now(UTC)


class Run:
    """One run over one warehouse: its name, its clock, and what it has done so far.

    Not a dataclass: Prefect walks through dataclasses that are given to a task, and this one holds a live engine.
    """

    def __init__(
        self,
        config: Config,
        root: Path,
        scope: Scope | None = None,
        engine: Engine | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.config, self.root, self.scope, self.clock = config, root, scope or Scope(), clock
        self.engine: Engine = engine or VllmEngine(config.engine, speculation=config.speculation)
        self.name = f"{clock():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.report = RunReport(run=self.name, warehouse=str(root))
        self.ledger = Ledger(root)

    @cached_property
    def writer(self) -> PromptWriter:
        """The prompts' maker, with the model's own special tokens to strip."""
        return PromptWriter(load_scenario(self.config.scenario), self.model.special_tokens)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder(self.config.encoder)

    @property
    def identity(self) -> EngineIdentity:
        return EngineIdentity.of(self.engine)

    @cached_property
    def model(self) -> ModelInfo:
        return describe_model(self.config.engine.model)

    def file(self, table: str, suffix: str = "") -> Path:
        """Where this run writes its part of an internal table."""
        return self.root / table / f"{self.name}{'-' if suffix else ''}{suffix}.parquet"

    def sources_read(self, table: str) -> set[SourceFile]:
        """Source files of an input table as they were when an earlier run read them."""
        return {
            SourceFile(**source)
            for commit in self.ledger.commits()
            for source in cast("dict[str, list[dict[str, Any]]]", commit.stats.get("sources", {})).get(table, ())
        }

    @property
    def knowledge_files(self) -> list[Path]:
        """Every finished segment: existence is the record."""
        return sorted((self.root / "knowledge").glob("[!.]*.parquet"))

    @property
    def pending(self) -> tuple[pa.Table, dict[str, str]]:
        """The calls to make in this run's scope, and the prompt version of each key."""
        return pending_requests(
            self.planning_sources, self.knowledge_files, self.identity, self.prompt_versions, self.scope
        )

    @property
    def planning_sources(self) -> Sources:
        """What plans are made from."""
        return Sources(*(self.ledger.files(table) for table in ("partitions", "items", "users", "requests")))

    @property
    def embedding_files(self) -> list[Path]:
        return sorted((self.root / "embeddings").glob("[!.]*.parquet"))

    @property
    def prompt_versions(self) -> dict[str, str]:
        """The current version of each kind of prompt."""
        return {str(kind): self.writer.version(kind) for kind in Kind}

    @property
    def stored(self) -> Stored:
        """The knowledge that this configuration asks for, wherever it came from."""
        return Stored(
            requests=self.ledger.files("requests"),
            knowledge=self.knowledge_files,
            embeddings=self.embedding_files,
            engine_id=self.identity.engine_id,
            encoder_id=self.encoder.encoder_id,
            dim=self.encoder.dim,
            prompt_versions=self.prompt_versions,
        )

    @property
    def labelled_events(self) -> LabelledEvents:
        """The behaviours that adapters and CTR models learn from."""
        labels = self.config.labels
        return LabelledEvents(
            self.ledger.files("behaviours"),
            self.ledger.files("items"),
            parse_rule(labels.positive),
            labels.category,
            labels.max_events,
        )

    def check(self) -> None:
        """Raise now what a wrong scenario or encoder would raise later."""
        _ = self.writer, self.encoder

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        log.info("%s: started", stage)
        yield
        seconds = round(time.monotonic() - started, 2)
        self.report.seconds[stage] = round(self.report.seconds.get(stage, 0.0) + seconds, 2)
        log.info("%s: done in %.1f s", stage, seconds)


@contextmanager
def closing_run(config: Config, scope: Scope, root: Path | None = None) -> Iterator[Run]:
    """A Run whose engine is freed at the end, whatever happens.

    Raises WarehouseNotFound without a warehouse, and ConfigError or InputError for what is wrong in the configuration,
    before anything is read or written.
    """
    if not Ledger(config.root).commits():
        raise WarehouseNotFound(str(config.root))
    run = Run(config, root or config.root, scope)
    parse_rule(config.labels.positive)
    try:
        # Made now, so that a wrong model, scenario or encoder is named before any stage begins.
        run.check()
        yield run
    finally:
        run.engine.close()


def ingest(run: Run) -> None:
    """New rows of the inputs, checked and stored. Source files that have not changed are not read again."""
    inputs, base, now = run.config.inputs, run.config.base, run.clock()
    limit = inputs.max_rejected_fraction
    with run.timed("ingest"):
        # Items and users stay in memory until everything was checked, so that a refused input leaves nothing behind.
        items = ingest_items(
            inputs.items,
            base,
            read_table(run.ledger.files("items"), ITEM_VERSIONS),
            now,
            partial(find_template_token, special_tokens=run.model.special_tokens),
            inputs.on_template_tokens,
            limit,
            run.sources_read("items"),
        )
        made = [items]
        if inputs.users is not None:
            known = read_table(run.ledger.files("users"), USER_VERSIONS)
            made.append(ingest_users(inputs.users, base, known, now, limit, run.sources_read("users")))
        events = ingest_behaviours(
            inputs.behaviours,
            base,
            run.ledger.files("behaviours"),
            run.file("behaviours"),
            run.file("rejected", "behaviours"),
            limit,
            run.sources_read("behaviours"),
            latest=inputs.latest_event(now),
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


def _count_ingest(report: RunReport, reports: Sequence[IngestReport]) -> None:
    by_table = {read.table: read for read in reports}
    report.events, report.events_known = by_table["behaviours"].accepted, by_table["behaviours"].known
    report.items = by_table["items"].accepted
    report.users = by_table["users"].accepted if "users" in by_table else 0
    for table, read in by_table.items():
        report.rejected += read.rejected
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


def plan(run: Run) -> None:
    """Write down the calls that are missing. Raises ConfigError when `labels.category` names no item attribute."""
    with run.timed("plan"):
        # Read again when the adapter is fitted, after all calls were paid for: refused before them.
        check_category(run.ledger.files("items"), run.config.labels.category)
        file = run.file("requests")
        # Items of one group are likely to get like answers, and draft from each other's.
        category = run.config.labels.category
        made = plan_requests(run.planning_sources, run.writer, run.identity, run.scope, run.clock(), file, category)
        if made.calls:
            run.ledger.commit("plan", add={"requests": [file]}, stats={"calls": made.planned}, now=run.clock())
        if made.untitled_partitions:
            run.report.notes.append(
                f"{made.untitled_partitions} partitions wait: none of their items stands in the catalogue with a title"
            )
        if made.untitled_items:
            run.report.notes.append(f"{made.untitled_items} items have a title with nothing to ask about")


def call_engine(run: Run, progress: StageProgress) -> None:
    """Make the pending calls and store their texts. The model is loaded only if there is a call to make."""
    pending, versions = run.pending
    if not pending.num_rows:
        return
    log.info("%d calls to %s", pending.num_rows, run.engine.model)
    with run.timed("generate"):
        made = generate(
            pending,
            versions,
            run.engine,
            run.root / "knowledge",
            # A retried task is a new attempt of the same run and must not write over its segments.
            f"{run.name}-{secrets.token_hex(2)}",
            run.config.segments,
            run.clock,
            lambda done, total, _tokens, rate: progress.update("generate", done, total, rate, "tokens"),
        )
    report, max_new_tokens = run.report, run.config.engine.max_new_tokens
    if made.calls:
        if isinstance(run.engine, DraftingEngine):
            report.speculation = run.engine.speculation_summary()
        stats = {**asdict(made), "speculation": report.speculation}
        run.ledger.commit("generate", add={}, stats=stats, now=run.clock())
    report.calls, report.calls_by_kind, report.texts_by_status = made.calls, made.calls_by_kind, made.statuses
    report.tokens_in, report.tokens_out, report.tokens_per_s = made.tokens_in, made.tokens_out, made.tokens_per_s
    report.prompts_too_long = made.too_long
    if made.too_long:
        report.notes.append(
            f"{made.too_long} prompts do not fit the engine's context and wait: the longest needs "
            f"{made.longest_prompt + max_new_tokens} tokens ({made.longest_prompt} and {max_new_tokens} for its "
            "answer). Raise engine.max_model_len or engine.kv_cache_gib, lower engine.max_new_tokens, or shorten the "
            "prompts in the scenario"
        )
    unusable = made.calls - made.statuses.get("ok", 0)
    if unusable:
        reasons = ", ".join(f"{status} {count}" for status, count in made.statuses.items() if status != "ok")
        report.notes.append(f"{unusable} of {made.calls} texts are kept but not used ({reasons})")
    if made.statuses.get(Status.TRUNCATED):
        report.notes.append(
            f"{made.statuses[Status.TRUNCATED]} texts were cut at engine.max_new_tokens = {max_new_tokens}. Raise it "
            "for whole ones; as it is a part of every call, all calls are then made anew"
        )


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
            lambda done, total, rate: progress.update("encode", done, total, rate, "texts"),
        )
    run.report.texts_encoded, run.report.texts_per_s = made.texts, made.texts_per_s


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
                samples, users.vectors, items.vectors, config, encoder_id=run.encoder.encoder_id, progress=_log_epoch
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
        rows = missing_rows(stored, adapter, published, now)
        counts = {table: added.num_rows for table, added in rows.items() if added.num_rows}
        if not counts:
            return
        snapshot = publish_tables(run.root, rows, replace=replace, now=now, lineage=_lineage(run, stored, adapter))
    run.report.rows_by_table, run.report.rows_published = counts, sum(counts.values())
    run.report.snapshot = snapshot.snapshot_id


def _lineage(run: Run, stored: Stored, adapter: TrainedAdapter) -> dict[str, object]:
    return {
        "run": run.name,
        "model": f"{run.engine.model}@{run.engine.revision}",
        "engine_id": stored.engine_id,
        "prompt_versions": dict(stored.prompt_versions),
        "encoder_id": stored.encoder_id,
        "adapter_version": adapter.meta.version,
    }


def forecast(run: Run) -> dict[str, object]:
    """What a run would go on to do: calls and tokens per kind, and the time they take at the last run's rate."""
    pending, _versions = run.pending
    kinds = forecast_calls(
        pending,
        run.ledger.files("requests"),
        run.knowledge_files,
        run.identity.engine_id,
        run.model.path,
        run.config.engine.max_new_tokens,
    )
    rates = [commit.stats["tokens_per_s"] for commit in run.ledger.commits() if commit.kind == "generate"]
    tokens_out = sum(kind.tokens_out for kind in kinds.values())
    return {
        "dry_run": True,
        "warehouse": str(run.config.root),
        "events": run.report.events,
        "partitions": run.report.partitions,
        "calls": pending.num_rows,
        "tokens_in": sum(kind.tokens_in for kind in kinds.values()),
        "tokens_out": tokens_out,
        "planned": {kind: asdict(cost) for kind, cost in kinds.items()},
        "estimated_seconds": round(tokens_out / cast(float, rates[-1]), 1) if rates and rates[-1] else None,
        "notes": run.report.notes,
    }
