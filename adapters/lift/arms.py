"""Arms: what each lets a CTR model know. All else is equal between them: events, split, seeds, fitting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Literal

import numpy as np

from adapters.lift.config import Arm, Protocol
from adapters.lift.data import LiftData, Source
from adapters.lift.shuffles import deal_in_part, deal_to_others, draw_vectors
from adapters.lift.splits import Split

DAY_US = 86_400_000_000

Change = Literal["others", "random"]


@dataclass(frozen=True)
class ArmSpec:
    """What an arm reads: sources of the item's and the user's side, and what is done to their texts.

    Several sources of items are read as one, beside each other; of users, each has a table of its own.
    """

    item: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    change: Change | None = None
    # Share of entities with another's texts.
    wrong: float = 0.0
    stale_days: int = 0
    mlp: bool = False
    # The adapter is trained with one model, and every model then reads its vectors as they are.
    frozen: bool = False
    id_mask: bool = True
    long_history: bool = False
    traits: bool = False
    # Groups as categorical fields.
    group_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """Text vectors of one side of a cell: `tables` [rows, d], and per table the row of each sample, -1 for none.

    `of_item` [items] is the row of the first table that an item of a history is read from, -1 for none.
    """

    tables: tuple[np.ndarray, ...]
    rows: tuple[np.ndarray, ...]
    of_item: np.ndarray | None = None


@dataclass(frozen=True)
class Known:
    """What an arm gives to a cell beside the events: both sides' texts, and further categorical fields [n]."""

    item: Side | None = None
    user: Side | None = None
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)


def arm_specs(data: LiftData, protocol: Protocol) -> dict[Arm, ArmSpec]:
    """The arms that the data allow under a protocol. Sources that may have seen any event count in `kar` only."""
    usable = {name for name in data.sources if protocol == "kar" or name not in data.leaky}
    groups = tuple(name for name in ("likes", "dislikes") if name in usable)
    user = ("summaries",) if "summaries" in usable else groups
    full = ArmSpec(item=("facts",) if "facts" in usable else (), user=user)
    specs: dict[Arm, ArmSpec] = {
        "base_unmasked": ArmSpec(id_mask=False),
        "base": ArmSpec(),
        "base_history": ArmSpec(long_history=True, traits=True),
    }
    if "titles" in usable:
        specs["titles"] = ArmSpec(item=("titles",))
        if "histories" in usable:
            specs["histories"] = ArmSpec(item=("titles",), user=("histories",))
    if not full.item and not full.user:
        return specs
    specs |= {"random": replace(full, change="random"), "shuffled": replace(full, change="others")}
    if full.item and full.user:
        specs["facts"] = replace(full, user=())
    if groups:
        specs["group_ids"] = ArmSpec(group_ids=groups)
        specs["groups"] = ArmSpec(user=groups)
        specs["groups_shuffled"] = ArmSpec(user=groups, change="others")
    specs |= {"mlp": replace(full, mlp=True), "full": full, "frozen": replace(full, frozen=True)}
    if full.item and "titles" in usable:
        specs["full_titles"] = replace(full, item=(*full.item, "titles"))
    specs |= {
        "wrong_10": replace(full, wrong=0.1),
        "wrong_30": replace(full, wrong=0.3),
        "wrong_50": replace(full, wrong=0.5),
    }
    if "summaries" in usable:
        specs |= {
            "stale_30": replace(full, stale_days=30),
            "stale_90": replace(full, stale_days=90),
            "stale_360": replace(full, stale_days=360),
        }
    return specs


def known_to(spec: ArmSpec, data: LiftData, split: Split, seed: int) -> Known:
    """What an arm gives to its cells of one seed; what is random depends on the seed and the source's name only."""
    samples = split.samples
    sides: dict[str, Side | None] = {"item": None, "user": None}
    for side, names in (("item", spec.item), ("user", spec.user)):
        if not names:
            continue
        sources = [
            replace(data.sources[name], vectors=_changed(spec, data.sources[name], name, seed)) for name in names
        ]
        if side == "item":
            sources = [reduce(Source.beside, sources)]
        delay = spec.stale_days * DAY_US if side == "user" else 0
        sides[side] = Side(
            tables=tuple(source.vectors for source in sources),
            rows=tuple(source.rows(samples.ts, delay) for source in sources),
            of_item=_history_rows(sources[0], data) if side == "item" else None,
        )
    fields: dict[str, np.ndarray] = {}
    if spec.traits:
        fields |= {name: codes[samples.user] for name, codes in data.traits.items()}
    # 0 for users without a group.
    fields |= {name: data.sources[name].holder + 1 for name in spec.group_ids}
    return Known(sides["item"], sides["user"], fields)


def _changed(spec: ArmSpec, source: Source, name: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *name.encode()])
    if spec.change == "random":
        return draw_vectors(source.entity, source.vectors, rng)
    if spec.change == "others":
        return deal_to_others(source.entity, np.arange(len(source.entity)), source.vectors, rng)
    if spec.wrong:
        return deal_in_part(source.entity, source.vectors, spec.wrong, rng)
    return source.vectors


def _history_rows(source: Source, data: LiftData) -> np.ndarray:
    """The row of each item's first text, -1 where it was not there before the item's first event. int64 [items].

    An item in a history is older than the sample, so is its text then; later versions of a text are not read there.
    """
    items = len(data.samples.items)
    first_event = np.full(items, np.iinfo(np.int64).max)
    np.minimum.at(first_event, data.samples.item, data.samples.ts)
    order = np.lexsort((source.valid_from, source.entity))
    entities, at = np.unique(source.entity[order], return_index=True)
    rows = np.full(items, -1, dtype=np.int64)
    known = entities >= 0
    rows[entities[known]] = order[at[known]]
    late = (rows >= 0) & (source.valid_from[rows] >= first_event)
    rows[late] = -1
    return rows
