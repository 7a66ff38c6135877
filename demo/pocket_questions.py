"""What the pocket LLM is examined on: partitions and groups of the demo world, none of which it was trained on."""

import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from augment.groups.build import build_groups
from augment.groups.config import GroupsConfig
from demo.catalogue import END, Movie
from demo.group_lessons import GROUP_KINDS
from demo.world import World, write_inputs
from prompts.render import Kind, Span

# The demo's partition sizes; the last one repeats.
PARTITION_SIZES = (10, 20)
POSITIVE = "value > 3"
# Smaller than the demo's own, so that there are enough to judge by; the movies named for them are as many.
EXAM_GROUPS = GroupsConfig(features="cooccurrence", max_users=10, max_items=16)

History = list[tuple[Movie, int]]


@dataclass(frozen=True)
class Partition:
    """A full partition: movies and stars, oldest first, when it was, and the one before it."""

    history: History
    span: Span
    previous: History | None


@dataclass(frozen=True)
class Group:
    """The movies that stand for a group of `size` members."""

    kind: Kind
    movies: list[Movie]
    size: int


def partitions(world: World, limit: int, seed: int) -> list[Partition]:
    """At most `limit` of the users' full partitions, drawn at random."""
    movies = {movie.item_id: movie for movie in world.movies}
    streams: dict[str, list[tuple[Movie, int, datetime]]] = defaultdict(list)
    for event in world.events:
        at = datetime.fromtimestamp(event.ts_us / 1e6, UTC)
        streams[event.user_id].append((movies[event.item_id], event.stars, at))
    found: list[Partition] = []
    for stream in streams.values():
        start, number = 0, 0
        previous, ended = None, None
        while start + (size := PARTITION_SIZES[min(number, len(PARTITION_SIZES) - 1)]) <= len(stream):
            events = stream[start : start + size]
            history = [(movie, stars) for movie, stars, _ in events]
            found.append(Partition(history, Span(events[0][2], events[-1][2], ended), previous))
            previous, ended = history, events[-1][2]
            start, number = start + size, number + 1
    picks = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[pick] for pick in picks]


def groups(world: World, limit: int, seed: int) -> dict[Kind, list[Group]]:
    """At most `limit` groups of each kind, as the pipeline would make and name them; drawn at random."""
    movies = {movie.item_id: movie for movie in world.movies}
    with tempfile.TemporaryDirectory() as folder:
        events = write_inputs(world, Path(folder))["behaviours"]
        made = build_groups([events], POSITIVE, sorted(movies), None, EXAM_GROUPS, generation=1, created_at=END)
    rows = made.groups.to_pylist()
    found = {}
    for kind in GROUP_KINDS:
        all_of_kind = [
            Group(kind, [movies[item_id] for item_id in row["named"]], row["size"])
            for row in rows
            if row["kind"] == kind and row["named"]
        ]
        picks = np.random.default_rng(seed).permutation(len(all_of_kind))[:limit]
        found[kind] = [all_of_kind[pick] for pick in picks]
    return found
