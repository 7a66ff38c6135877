"""REKI's groups in a run: formed once, later entities assigned, formed anew by command; and the `groups` verbs."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

import numpy as np
import orjson
import pyarrow as pa

from augment.groups.assignment import FrozenGroups, NewItems, assign_new, grown
from augment.groups.build import build_groups
from augment.scope import Scope
from flows.config import Config
from flows.run import Run, closing_run
from warehouse.errors import ConfigError
from warehouse.labels import parse_rule
from warehouse.ledger import existing_ledger
from warehouse.schemas import GROUP_MEMBERS, GROUPS, ITEM_FACTORS, ITEM_VERSIONS
from warehouse.sql import connect, parquet_view
from warehouse.store import read_table, write_table

log = logging.getLogger("lorestream")

TABLES = {"groups": GROUPS, "group_members": GROUP_MEMBERS, "item_factors": ITEM_FACTORS}


def form_groups(run: Run) -> None:
    """Groups for `knowledge.mode` collective or mixed: the first clustering, and a place for who came after it."""
    if run.config.knowledge.mode == "individual":
        return
    with run.timed("groups"):
        # Imported groups take the place of a clustering.
        if not newest_generation(run):
            cluster(run, 1)
        # A clustering that ends at `groups.until` has left out who is there already.
        frozen = stored_groups(run)
        if frozen is not None:
            _assign(run, frozen)


def cluster(run: Run, generation: int) -> dict[str, object]:
    """Cluster everybody anew, as `generation`; what was found, by kind."""
    config = run.config.groups
    items = catalogue(run, config.until)
    made = build_groups(
        run.ledger.files("behaviours"),
        parse_rule(run.config.labels.positive).sql,
        items.column("item_id").to_pylist(),
        _vectors(run, items),
        config,
        generation=generation,
        created_at=run.clock(),
        until=config.until,
    )
    report: dict[str, object] = {str(kind): asdict(found) for kind, found in made.report.items()}
    if not made.groups.num_rows:
        run.report.notes.append("there is nobody to group yet: no event with an item of the catalogue")
        return report
    tables = {"groups": made.groups, "group_members": made.members, "item_factors": made.factors}
    add = {name: [write_table(run.file(name), table).path] for name, table in tables.items()}
    stats = {"generation": generation, "as_of": made.as_of.isoformat(), "recipe": _recipe(run), **report}
    run.ledger.commit("groups", add=add, stats=stats, now=run.clock())
    for kind, found in made.report.items():
        log.info("%s: %d groups of %d to %d", kind, found.groups, found.smallest, found.largest)
    run.report.groups = {str(kind): found.groups for kind, found in made.report.items()}
    return report


def stored_groups(run: Run) -> FrozenGroups | None:
    """The newest generation of groups that others can join, None before the first."""
    tables = [read_table(run.ledger.files(name), schema) for name, schema in TABLES.items()]
    return FrozenGroups.newest(*tables)


def newest_generation(run: Run) -> int:
    """The number of the newest generation of groups, 0 before the first."""
    generations = read_table(run.ledger.files("groups"), GROUPS)["generation"]
    return pa.compute.max(generations).as_py() or 0


def build(config: Config) -> dict[str, object]:
    """Cluster everybody anew: another generation, whose groups the next run asks about."""
    with closing_run(config, Scope()) as run, run.writing("lorestream groups build"):
        generation = newest_generation(run) + 1
        return {"generation": generation, **cluster(run, generation), "notes": run.report.notes}


def stats(config: Config) -> dict[str, object]:
    """The generations of groups, oldest first, and how many groups later members have grown past the maximum."""
    ledger = existing_ledger(config.root)
    members = read_table(ledger.files("group_members"), GROUP_MEMBERS)
    generations = [dict(commit.stats) for commit in ledger.commits() if commit.kind == "groups"]
    for found in generations:
        mine = members.filter(pa.compute.equal(members["generation"], found["generation"]))
        found["members"] = mine.num_rows
        found["grown"] = {str(kind): count for kind, count in grown(mine, config.groups).items()}
    return {"generations": generations}


def _assign(run: Run, frozen: FrozenGroups) -> None:
    _check_recipe(run, frozen)
    items_now = catalogue(run)
    known = set(frozen.members.filter(pa.compute.equal(frozen.members["kind"], "group_items"))["entity_id"].to_pylist())
    fresh = [row for row, item in enumerate(items_now.column("item_id").to_pylist()) if item not in known]
    items = None
    if fresh and run.config.groups.uses_text:
        rows = items_now.take(pa.array(fresh))
        vectors = _vectors(run, rows)
        assert vectors is not None, "features that use texts have texts"
        items = NewItems(rows.column("item_id").to_pylist(), rows.column("valid_from").to_pylist(), vectors)
    joined = assign_new(
        frozen,
        run.ledger.files("behaviours"),
        parse_rule(run.config.labels.positive).sql,
        run.config.groups,
        created_at=run.clock(),
        items=items,
    )
    if joined.num_rows:
        file = write_table(run.file("group_members", "joined"), joined)
        counts = Counter(joined.column("kind").to_pylist())
        run.ledger.commit("assign", add={"group_members": [file.path]}, stats=dict(counts), now=run.clock())
        log.info("joined the groups of generation %d: %s", frozen.generation, dict(counts))


def _recipe(run: Run) -> dict[str, object]:
    """What vectors must be made by to be compared with a clustering's."""
    config = run.config.groups
    recipe: dict[str, object] = {"features": config.features, "rank": config.rank}
    if config.uses_text:
        recipe |= {"text_weight": config.text_weight, "encoder": run.encoder.encoder_id}
    return recipe


def _check_recipe(run: Run, frozen: FrozenGroups) -> None:
    """Raise ConfigError where later entities would be compared with a clustering that was made otherwise."""
    commits = [commit.stats for commit in run.ledger.commits() if commit.kind == "groups"]
    made = next(stats.get("recipe") for stats in reversed(commits) if stats["generation"] == frozen.generation)
    if made != _recipe(run):
        raise ConfigError(
            f"The groups of generation {frozen.generation} were made with {made}, and now [groups] and [encoder] say "
            f"{_recipe(run)}: nobody can be assigned to them. Cluster anew with `lorestream groups build`, or go back."
        )


def catalogue(run: Run, until: datetime | None = None) -> pa.Table:
    """The newest version of every item, of those valid before `until`: item_id, title, attributes, valid_from."""
    known = "true" if until is None else f"valid_from < TIMESTAMPTZ '{until.isoformat()}'"
    with connect() as con:
        parquet_view(con, "items", run.ledger.files("items"), ITEM_VERSIONS)
        rows: pa.Table = con.sql(
            f"SELECT item_id, title, attributes, valid_from FROM items WHERE {known} "
            "QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY created_at DESC, valid_from DESC) = 1 "
            "ORDER BY item_id"
        ).to_arrow_table()
    return rows


def _vectors(run: Run, items: pa.Table) -> np.ndarray | None:
    """Vectors of the items' titles and attributes, where groups go by texts."""
    if not run.config.groups.uses_text:
        return None
    texts = [
        _text(title, orjson.loads(attributes))
        for title, attributes in zip(
            items.column("title").to_pylist(), items.column("attributes").to_pylist(), strict=True
        )
    ]
    return run.encoder.encode(texts)


def _text(title: str, attributes: dict[str, object]) -> str:
    """An item's own words: its title and what its attributes say."""
    said: list[str] = [title]
    for value in attributes.values():
        entries: Sequence[object] = value if isinstance(value, list) else [value]
        said += [entry for entry in entries if isinstance(entry, str)]
    return ". ".join(said)
