"""Calls that are planned and not answered, in the order in which a budget pays for them.

Order: groups (one call serves many), then shifts (they complete a summary that was paid for), then everybody by
    priority = traffic x staleness x uncertainty.
`traffic` is 1 + the entity's events in the last days of the log: how often its knowledge will be joined. `staleness` is
how much of what will be joined is missing: of a partition, its share of the user's events from it on (1 for the newest,
less for one that others followed); of an item 1, or 1/2 where only its catalogue row changed. `uncertainty` is the mean
of 4 p (1 - p) over the CTR model's scores of the entity, where such scores are given (after CoReLLa, which asks the LLM
where the CTR model is unsure), and 1 for an entity that it never scored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from augment.budget import BudgetConfig
from augment.engine.base import Request
from augment.scope import EngineIdentity, Scope, Sources, register
from warehouse.errors import InputError
from warehouse.schemas import BEHAVIOURS
from warehouse.sql import connect, parquet_view, quote

_BATCH_ROWS = 8192
_SCORES = pa.schema([("entity", pa.string()), ("id", pa.string()), ("score", pa.float64())])


@dataclass(frozen=True)
class Choice:
    """The pending calls that a budget lets through, and those that wait.

    `granted` and `waiting` have the columns of `pending_requests`, each in order of the budget: the last row of the one
    and the first of the other are the margin.
    """

    granted: pa.Table
    waiting: pa.Table

    def explained(self) -> dict[str, object]:
        """Per kind what is paid for and what waits, and the margin, in JSON's types."""
        kinds: dict[str, dict[str, int]] = {}
        for name, table in (("granted", self.granted), ("waiting", self.waiting)):
            for row in pc.value_counts(table.column("kind")).to_pylist():
                kinds.setdefault(row["values"], {"granted": 0, "waiting": 0})[name] = row["counts"]
        found: dict[str, object] = {"kinds": dict(sorted(kinds.items()))}
        if self.granted.num_rows:
            found["last_granted"] = _margin(self.granted.slice(self.granted.num_rows - 1))
        if self.waiting.num_rows:
            found["first_waiting"] = _margin(self.waiting.slice(0, 1))
        return found


def pending_requests(
    sources: Sources,
    engine: EngineIdentity,
    versions: Mapping[str, str],
    kinds: Sequence[str],
    scope: Scope,
    *,
    behaviours: Sequence[Path] = (),
    budget: BudgetConfig | None = None,
) -> pa.Table:
    """Planned calls without a stored text that a plan of the same scope would make now, in the order of the budget.

    So what an interrupted run left behind waits until its prompts (`versions` by kind), engine, kinds and scope are
    asked for again. Columns request_key, prompt, group, kind, prompt_version, entity_id, partition_no, traffic,
    staleness, uncertainty, priority; one row per key: entities with equal prompts share one call, and their traffic.
    Without a limit in `budget` no traffic is counted, and earlier partitions come before later ones; with one, a user's
    newest partition comes first, whose knowledge serves from now on.

    Raises InputError for a table of scores that cannot be used.
    """
    limited = budget is not None and budget.limited
    with connect() as con:
        register(con, sources, engine.engine_id, versions, scope)
        parquet_view(con, "behaviours", behaviours if limited else (), BEHAVIOURS)
        scores = budget.scores if budget is not None and limited else None
        _register_scores(con, scores)
        days = budget.traffic_days if budget is not None else 1.0
        listed = ", ".join(quote(kind) for kind in kinds) or "NULL"
        table: pa.Table = con.sql(
            _PENDING.format(
                kinds=listed,
                seconds=days * 86_400.0,
                scored="true" if scores else "false",
                partitions="DESC" if limited else "ASC",
            )
        ).to_arrow_table()
    return table


def choose(
    pending: pa.Table, cascade: bool, tokens: Mapping[str, float], calls_left: int | None, tokens_left: int | None
) -> Choice:
    """The longest prefix of `pending` that `calls_left` and `tokens_left` (None: no limit) are expected to pay for.

    With `cascade`, a summary that will be followed by a shift counts as two calls. `tokens` are expected output tokens
    by kind. What an answer really costs is the Meter's business: this decides who comes first and who waits.
    """
    numbers = pc.fill_null(pending.column("partition_no"), 0).to_numpy()
    kinds = np.asarray(pending.column("kind").to_pylist(), dtype=object)
    followed = (kinds == "user_summary") & (numbers > 0) & cascade
    calls = np.cumsum(1 + followed)
    each = np.array([tokens[kind] for kind in kinds], np.float64)
    shift = tokens.get("user_shift", 0.0)
    total = np.cumsum(each + np.where(followed, shift, 0.0))
    fits = np.ones(len(kinds), bool)
    if calls_left is not None:
        fits &= calls <= calls_left
    if tokens_left is not None:
        fits &= total <= tokens_left
    upto = len(kinds) if fits.all() else int(np.argmin(fits))
    return Choice(pending.slice(0, upto), pending.slice(upto))


def as_requests(pending: pa.Table) -> Iterator[Request]:
    """The rows of `pending_requests` as an engine takes them, read batch by batch."""
    for batch in pending.to_batches(max_chunksize=_BATCH_ROWS):
        for key, prompt, group in zip(
            *(batch.column(c).to_pylist() for c in ("request_key", "prompt", "group")), strict=True
        ):
            yield Request(key, prompt, group)


def _margin(row: pa.Table) -> dict[str, object]:
    shown = ("kind", "entity_id", "partition_no", "traffic", "staleness", "uncertainty", "priority")
    found: dict[str, object] = row.select(shown).to_pylist()[0]
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}


def _register_scores(con: duckdb.DuckDBPyConnection, path: Path | None) -> None:
    """Make `scores` (entity, id, score); raises InputError for a table that is none."""
    if path is None:
        con.register("scores", _SCORES.empty_table())
        return
    # Every value as it is written: an id of "007" is not 7.
    source = f"read_parquet({quote(str(path))})"
    if path.suffix.lower() in {".csv", ".tsv"}:
        source = f"read_csv({quote(str(path))}, header = true, all_varchar = true)"
    try:
        con.execute(
            "CREATE TEMP TABLE scores AS SELECT entity::VARCHAR AS entity, id::VARCHAR AS id, score::DOUBLE AS score "
            f"FROM {source}"
        )
    except duckdb.Error as error:
        raise InputError(
            f"budget.scores = {str(path)!r} cannot be read as a table with columns entity, id and score: {error}. "
            "Give Parquet or CSV, with `user` or `item` in entity and the CTR model's prediction in score."
        ) from error
    wrong = con.execute(
        "SELECT entity, id, score FROM scores WHERE entity IS NULL OR entity NOT IN ('user', 'item') OR id IS NULL "
        "OR score IS NULL OR score < 0 OR score > 1 OR isnan(score) LIMIT 1"
    ).fetchone()
    if wrong is not None:
        raise InputError(
            f"budget.scores = {str(path)!r} has the row entity {wrong[0]!r}, id {wrong[1]!r}, score {wrong[2]}; entity "
            "must be user or item, id somebody's, and score a probability from 0 to 1."
        )
    scored, known, example = con.execute(
        """
        SELECT count(*), count(*) FILTER (WHERE known), any_value(entity || ' ' || id) FROM (
            SELECT entity, id, CASE entity WHEN 'user' THEN id IN (SELECT user_id FROM behaviours)
                                           ELSE id IN (SELECT item_id FROM items) END AS known FROM scores
        )
        """
    ).fetchall()[0]
    if scored and not known:
        raise InputError(
            f"None of the {scored} ids in budget.scores = {str(path)!r} is known here, such as {example}: the table "
            "would change nothing. Use the ids of the inputs, not a model's own numbers for them, or leave it out."
        )


# Traffic comes from no table where there is no limit: then nothing hangs on it.
_PENDING = """
    WITH newest AS (SELECT max(ts) AS ts FROM behaviours),
    recent AS (SELECT user_id, item_id FROM behaviours, newest
               WHERE behaviours.ts > newest.ts - to_microseconds(CAST({seconds} * 1e6 AS BIGINT))),
    traffic AS (
        SELECT 'user' AS entity, user_id AS id, count(*) AS events FROM recent GROUP BY user_id
        UNION ALL
        SELECT 'item', item_id, count(*) FROM recent GROUP BY item_id
    ),
    shares AS (
        SELECT user_id, partition_no,
               len(items) / sum(len(items)) OVER (PARTITION BY user_id ORDER BY partition_no DESC) AS share
        FROM partitions
    ),
    known_item AS (
        SELECT DISTINCT a.entity_id AS item_id FROM asked a JOIN answers k USING (request_key)
        WHERE a.kind = 'item_facts' AND k.status = 'ok'
    ),
    unsure AS (SELECT entity, id, avg(4 * score * (1 - score)) AS uncertainty FROM scores GROUP BY entity, id),
    wanted AS (
        SELECT a.*, 2 AS tier, 'user' AS entity, z.share AS staleness
        FROM (FROM asked a SEMI JOIN scoped_partitions p
                  ON a.kind = 'user_summary' AND a.entity_id = p.user_id AND a.partition_no = p.partition_no) a
        JOIN shares z ON z.user_id = a.entity_id AND z.partition_no = a.partition_no
        UNION ALL
        SELECT a.*, 1, 'user', 1.0 FROM asked a SEMI JOIN scoped_partitions p
            ON a.kind = 'user_shift' AND a.entity_id = p.user_id AND a.partition_no = p.partition_no
        UNION ALL
        SELECT a.*, 2, 'item', CASE WHEN a.entity_id IN (SELECT item_id FROM known_item) THEN 0.5 ELSE 1.0 END
        FROM asked a SEMI JOIN scoped_items i
            ON a.kind = 'item_facts' AND a.entity_id = i.item_id AND a.source_digest = i.digest
        UNION ALL
        SELECT a.*, 0, 'group', 1.0 FROM asked a SEMI JOIN scoped_groups g
            ON a.kind = g.kind AND a.entity_id = g.group_id
    ),
    weighed AS (
        SELECT w.*, 1 + coalesce(t.events, 0) AS traffic,
               CASE WHEN {scored} AND w.entity <> 'group' THEN coalesce(u.uncertainty, 1.0) ELSE 1.0 END AS uncertainty
        FROM (FROM wanted WHERE kind IN ({kinds})) w
        LEFT JOIN traffic t ON t.entity = w.entity AND t.id = w.entity_id
        LEFT JOIN unsure u ON u.entity = w.entity AND u.id = w.entity_id
        ANTI JOIN answers k ON k.request_key = w.request_key
    ),
    calls AS (
        SELECT request_key, any_value(prompt) AS prompt, any_value("group") AS "group", any_value(kind) AS kind,
               any_value(prompt_version) AS prompt_version, min(entity_id) AS entity_id,
               min(partition_no) AS partition_no, min(tier) AS tier, sum(traffic)::DOUBLE AS traffic,
               max(staleness)::DOUBLE AS staleness, max(uncertainty)::DOUBLE AS uncertainty
        FROM weighed GROUP BY request_key
    )
    SELECT * EXCLUDE (tier), traffic * staleness * uncertainty AS priority FROM calls
    ORDER BY tier, priority DESC, kind DESC, partition_no {partitions} NULLS LAST, request_key
"""
