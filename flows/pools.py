"""Retrieval pools in a run: choose the one to draft from, build a new one when it is due, and the `pool` verbs."""

import logging
from pathlib import Path

import pyarrow as pa

from augment.engine.base import DraftingEngine
from augment.scope import Scope
from augment.speculation.pool import PoolIdentity, RetrievalPool
from augment.speculation.shelf import build_pool, is_due, pool_identity, pool_texts, serving_pool
from flows.config import Config
from flows.run import Run, closing_run
from warehouse.errors import ConfigError, InputError, WarehouseNotFound
from warehouse.ledger import Ledger

log = logging.getLogger("lorestream")


def choose_pool(run: Run) -> None:
    """Have the engine draft from the newest pool, made anew when there is enough new knowledge.

    Raises CorruptPool for a damaged one. Without a call to make or with speculation off, nothing is read.
    """
    engine = run.engine
    if run.config.speculation.mode == "off" or not isinstance(engine, DraftingEngine) or not run.pending.num_rows:
        return
    identity = _identity(run)
    files = run.ledger.files("pools")
    pool = serving_pool(files, identity)
    texts = pool_texts(run.ledger.files("requests"), run.knowledge_files, identity.model, run.prompt_versions)
    if is_due(texts.num_rows, pool, run.config.pool):
        pool = make_pool(run, texts)
    if pool is not None:
        engine.draft_from(run.ledger.files("pools")[-1], identity)


def make_pool(run: Run, texts: pa.Table) -> RetrievalPool:
    """A pool of `texts`, saved and entered in the ledger."""
    identity, tokenizer = _identity(run), _tokenizer(run)
    with run.timed("build pool"):
        pool = build_pool(texts, tokenizer, identity, run.config.pool)
        file = run.root / "pools" / f"{run.name}-{pool.digest[:8]}.pool"
        pool.save(file)
        # Not its groups: they go by attributes of items, and what the ledger says is never taken back.
        stats = {name: value for name, value in pool.stats().items() if name != "groups"}
        run.ledger.commit("pool", add={"pools": [file]}, stats=stats, now=run.clock())
        log.info("pool %s: %d texts, %d tokens", pool.digest, pool.texts, pool.tokens)
    return pool


def build(config: Config) -> dict[str, object]:
    """A new pool of all that is stored for the configured model and prompts, and what it holds.

    Raises InputError when there is no text yet.
    """
    with closing_run(config, Scope()) as run, run.writing("lorestream pool build"):
        model = _identity(run).model
        texts = pool_texts(run.ledger.files("requests"), run.knowledge_files, model, run.prompt_versions)
        if not texts.num_rows:
            raise InputError(
                f"The warehouse {run.root} holds no text of {model} for the current prompts, so there is nothing to "
                "build a pool from. Make some with `lorestream run`."
            )
        return make_pool(run, texts).stats()


def stats(config: Config) -> dict[str, object]:
    """The pools of the warehouse, oldest first. Raises WarehouseNotFound, and CorruptPool for a damaged one."""
    ledger = Ledger(config.root)
    if not ledger.commits():
        raise WarehouseNotFound(str(config.root))
    return {"pools": [{"file": str(file), **RetrievalPool.load(file).stats()} for file in ledger.files("pools")]}


def _identity(run: Run) -> PoolIdentity:
    return pool_identity(f"{run.engine.model}@{run.engine.revision}", _tokenizer(run), run.prompt_versions)


def _tokenizer(run: Run) -> Path:
    """The folder of the LLM's tokenizer. Raises ConfigError where there is none."""
    if run.tokenizer is None:
        raise ConfigError(
            "A retrieval pool holds the tokens of the model's answers, and the configuration names no tokenizer: the "
            'model is served elsewhere. Pools are of use to engine.backend = "vllm" alone.'
        )
    return run.tokenizer.path
