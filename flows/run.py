"""One run over one warehouse: what it is configured to do, what it has at hand, and what it has done."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from adapters.knowledge import Stored
from adapters.training import LabelledEvents
from augment.encode import TextEncoder
from augment.engine.base import Engine
from augment.engine.config import EngineConfig
from augment.engine.model import TokenizerInfo, describe_tokenizer
from augment.engine.openai import OpenAIEngine
from augment.engine.vllm import VllmEngine
from augment.pending import pending_requests
from augment.plan import Wishes
from augment.quality.gate import QualityGate
from augment.scope import EngineIdentity, Scope, Sources
from flows.config import Config
from flows.report import RunReport
from flows.writing import writing
from prompts.render import Kind, PromptWriter
from prompts.scenario import load_scenario
from warehouse.labels import parse_rule
from warehouse.ledger import Ledger, existing_ledger
from warehouse.names import catalogue_names
from warehouse.segments import record_segments, segments
from warehouse.sources import SourceFile
from warehouse.workingcopy import WorkingCopy

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
        self.engine: Engine = engine or _make_engine(config)
        self._first_name = self.name = f"{clock():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self.report = RunReport(run=self.name, warehouse=str(root))
        self.ledger = Ledger(root)
        self._copy: WorkingCopy | None = None

    @contextmanager
    def writing(self, owner: str, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the warehouse for the block: see `flows.writing`."""
        with writing(self.config, owner, wait_s) as self._copy:
            try:
                yield
            finally:
                self._copy = None

    def keep_segment(self) -> None:
        """Have the ledger name the texts or vectors just written, and `save` them."""
        record_segments(self.ledger, self.clock())
        self.save()

    def save(self) -> None:
        """Put what is finished into the store, if there is one: from then on the loss of this machine loses none."""
        if self._copy is not None:
            self._copy.push()

    @cached_property
    def writer(self) -> PromptWriter:
        """The prompts' maker, with the model's own special tokens to strip."""
        return PromptWriter(load_scenario(self.config.scenario), self.special_tokens, self.config.prompts.options)

    @cached_property
    def encoder(self) -> TextEncoder:
        return TextEncoder(self.config.encoder)

    @property
    def identity(self) -> EngineIdentity:
        return EngineIdentity.of(self.engine)

    @cached_property
    def tokenizer(self) -> TokenizerInfo | None:
        """The LLM's tokenizer, None where a server has it and none is named."""
        engine = self.config.engine
        where = engine.model if isinstance(engine, EngineConfig) else engine.tokenizer
        return None if where is None else describe_tokenizer(where)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return () if self.tokenizer is None else self.tokenizer.special_tokens

    def turn_to(self, scope: Scope, part: str) -> None:
        """Go on with another part of the warehouse, whose files are named after it as well."""
        self.scope, self.name = scope, f"{self._first_name}-{part}"

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
        """Every finished segment of texts. Raises LostSegments."""
        return segments(self.ledger, "knowledge")

    @property
    def pending(self) -> pa.Table:
        """The calls to make in this run's scope, in the order in which the budget pays for them."""
        config = self.config
        return pending_requests(
            self.planning_sources,
            self.identity,
            self.prompt_versions,
            config.knowledge.kinds,
            self.scope,
            behaviours=self.ledger.files("behaviours"),
            budget=config.budget.model_copy(update={"scores": config.budget_scores}),
        )

    @property
    def wishes(self) -> Wishes:
        """What to ask."""
        labels = self.config.labels
        return Wishes(self.config.knowledge, parse_rule(labels.positive), labels.category)

    @property
    def planning_sources(self) -> Sources:
        """What plans are made from."""
        files = self.ledger.files
        return Sources(
            partitions=files("partitions"),
            items=files("items"),
            users=files("users"),
            requests=files("requests"),
            knowledge=self.knowledge_files,
            groups=files("groups"),
            group_members=files("group_members"),
        )

    @property
    def gate(self) -> QualityGate:
        """The judge of texts, who knows the catalogue's names."""
        scenario, quality = self.writer.scenario, self.config.quality
        # Of the others, that nothing has changed, or that a group has nothing in common, is an answer.
        factors = {str(Kind.USER_SUMMARY): scenario.user_factors, str(Kind.ITEM_FACTS): scenario.item_factors}
        names = catalogue_names(self.ledger.files("items")) if quality.enabled else ()
        return QualityGate(quality, factors, names, self.special_tokens)

    @property
    def embedding_files(self) -> list[Path]:
        """Every finished segment of vectors. Raises LostSegments."""
        return segments(self.ledger, "embeddings")

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
            kinds=self.config.knowledge.kinds,
            partitions=self.ledger.files("partitions"),
            items=self.ledger.files("items"),
            groups=self.ledger.files("groups"),
            group_members=self.ledger.files("group_members"),
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
    if config.store is None or root is not None:
        # What a writer does not have it fetches, once it holds the store's lease.
        existing_ledger(config.root)
    run = Run(config, root or config.root, scope)
    parse_rule(config.labels.positive)
    try:
        # Made now, so that a wrong model, scenario or encoder is named before any stage begins.
        run.check()
        yield run
    finally:
        run.engine.close()


def _make_engine(config: Config) -> Engine:
    if isinstance(config.engine, EngineConfig):
        return VllmEngine(config.engine, speculation=config.speculation)
    return OpenAIEngine(config.engine)
