"""The retrieval pools of a warehouse: which one serves a run, when to make a new one, and from which texts.

A pool is made from stored knowledge of one model, tokenizer and set of prompt versions. The ledger's table `pools`
names them, oldest first; none is removed, since rows of relaxed texts name the pool they depend on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from augment.engine.model import tokenizer_digest
from augment.speculation.config import PoolConfig
from augment.speculation.pool import PoolIdentity, RetrievalPool
from warehouse.keys import digest
from warehouse.schemas import KNOWLEDGE, REQUESTS
from warehouse.sql import connect, parquet_view

_BATCH_TEXTS = 4096


def pool_identity(model: str, folder: Path, prompt_versions: Mapping[str, str]) -> PoolIdentity:
    """What a pool must have been made with to draft for `model` (name@revision) in `folder` under these prompts."""
    return PoolIdentity(model=model, tokenizer=tokenizer_digest(folder), prompt_version=digest(dict(prompt_versions)))


def pool_texts(
    requests: Sequence[Path], knowledge: Sequence[Path], model: str, prompt_versions: Mapping[str, str]
) -> pa.Table:
    """Answers that `model` (name@revision) gave to the current prompts, newest first: columns text, prompt, group."""
    with connect() as con:
        parquet_view(con, "requests", requests, REQUESTS)
        parquet_view(con, "knowledge", knowledge, KNOWLEDGE)
        rows: pa.Table = con.sql(
            """
            SELECT text, any_value(prompt) AS prompt, coalesce(any_value("group"), any_value(kind)) AS "group"
            FROM knowledge JOIN requests USING (request_key)
            WHERE model = $model AND list_contains($versions, knowledge.prompt_version) AND status <> 'empty'
            GROUP BY request_key, text, knowledge.created_at
            ORDER BY knowledge.created_at DESC, request_key
            """,
            params={"model": model, "versions": sorted(prompt_versions.values())},
        ).to_arrow_table()
    return rows


def serving_pool(pools: Sequence[Path], identity: PoolIdentity) -> RetrievalPool | None:
    """The newest of `pools`, if it was made for `identity`; of anything else it would seldom be right.

    Raises CorruptPool for one that is damaged.
    """
    if not pools:
        return None
    pool = RetrievalPool.load(pools[-1])
    return pool if pool.identity == identity else None


def is_due(texts: int, pool: RetrievalPool | None, config: PoolConfig) -> bool:
    """Whether so many texts are worth a new pool."""
    return texts >= config.min_texts and (pool is None or texts >= config.growth * pool.texts)


def build_pool(texts: pa.Table, folder: Path, identity: PoolIdentity, config: PoolConfig) -> RetrievalPool:
    """A pool of `texts` (see `pool_texts`), or of the first of them that hold `max_tokens` tokens.

    `folder` holds the model's tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    sequences: list[list[int]] = []
    prompts: list[list[int]] = []
    groups: list[str] = []
    room = config.max_tokens
    for batch in texts.to_batches(max_chunksize=_BATCH_TEXTS):
        answers, asked = (
            tokenizer(batch[name].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
            for name in ("text", "prompt")
        )
        for answer, prompt, group in zip(answers, asked, batch["group"].to_pylist(), strict=True):
            room -= len(answer)
            if room < 0:
                break
            sequences.append(answer)
            prompts.append(prompt)
            groups.append(group)
    return RetrievalPool.build(sequences, groups, prompts=prompts, identity=identity)
