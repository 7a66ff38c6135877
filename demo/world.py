"""The demo's synthetic world as input tables: movies, users with drifting tastes, and what they rated when.

A rating follows from how well the movie's hidden attributes meet the user's taste of that day, the movie's quality and
noise. The tables show titles, genres and stars; the attributes that explain the stars are in the pocket LLM's weights.

    python -m demo.world FOLDER [--small]
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demo.catalogue import END, GENRES, HIDDEN, START, Movie, make_catalogue
from warehouse.schemas import BEHAVIOURS, DEFAULT_ACTION, ITEMS, TIMESTAMP, USERS

N_USERS = 450
N_USERS_SMALL = 120
MIN_EVENTS, MAX_EVENTS = 15, 220
# Stars that a fully liked value of a factor adds. Genre is what the tables show, so it must explain little.
TASTE_WEIGHTS = {"mood": 1.0, "theme": 0.95, "director": 0.75, "character": 0.7, "genre": 0.3}
# Signed strengths of one factor's values in a taste: who likes something also dislikes something.
TASTE_PATTERN = (1.2, 0.7, -0.7, -1.1)
# The stars of a movie that means nothing to a user; half of all ratings come out above 3.
MIDDLE_STARS = 3.45
# Factors whose values are drawn anew when a user's taste changes, once, in the middle of the user's stream.
DRIFTING_FACTORS = 2
NOISE_STARS = 1.1
POPULARITY_SIGMA = 0.6
# People look at what has just come out.
NEW_RELEASE_BOOST = 2.0
NEW_RELEASE_DAYS = 90
_AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55+")

TASTE_VALUES: dict[str, tuple[str, ...]] = {
    factor: GENRES if factor == "genre" else HIDDEN[factor] for factor in TASTE_WEIGHTS
}
# Factor -> value -> strength.
Taste = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Event:
    """One rating. `score` is the noiseless number of stars, unrounded: what an oracle would rank by."""

    user_id: str
    item_id: str
    ts_us: int
    stars: int
    score: float


@dataclass(frozen=True)
class World:
    """A catalogue, users and their events in order of time (then user, then item)."""

    movies: tuple[Movie, ...]
    user_ids: tuple[str, ...]
    age_bands: tuple[str, ...]
    events: tuple[Event, ...]


def make_world(seed: int = 7, users: int | None = None, small: bool = False) -> World:
    """The world of that seed: 450 users (120 if `small`) over the one catalogue; equal arguments, equal worlds."""
    count = users if users is not None else (N_USERS_SMALL if small else N_USERS)
    movies = make_catalogue()
    popularity = np.exp(np.random.default_rng([seed, 0]).normal(0.0, POPULARITY_SIGMA, len(movies)))
    events: list[Event] = []
    ages = []
    for number in range(count):
        # One generator per user: a small world is the first users of the full one.
        rng = np.random.default_rng([seed, 1, number])
        ages.append(_AGE_BANDS[rng.integers(len(_AGE_BANDS))])
        events += _stream(f"u{number:04d}", movies, popularity, rng)
    events.sort(key=lambda e: (e.ts_us, e.user_id, e.item_id))
    return World(movies, tuple(f"u{n:04d}" for n in range(count)), tuple(ages), tuple(events))


def draw_taste(rng: np.random.Generator, factors: Sequence[str] = tuple(TASTE_WEIGHTS)) -> Taste:
    """A random taste: per factor two values liked, two disliked, the rest indifferent."""
    taste: Taste = {}
    for factor in factors:
        values = TASTE_VALUES[factor]
        chosen = rng.permutation(len(values))[: len(TASTE_PATTERN)].tolist()
        strengths = dict(zip(chosen, TASTE_PATTERN, strict=True))
        taste[factor] = {value: strengths.get(n, 0.0) for n, value in enumerate(values)}
    return taste


def expected_stars(movie: Movie, taste: Taste, bias: float) -> float:
    """Noiseless stars, unrounded: the middle, the user's bias, the movie's quality and what the taste adds."""
    stars = MIDDLE_STARS + bias + movie.quality
    for factor, weight in TASTE_WEIGHTS.items():
        values = movie.genres if factor == "genre" else (movie.hidden[factor],)
        stars += weight * sum(taste[factor][value] for value in values) / len(values)
    return stars


def to_stars(score: float) -> int:
    """Whole stars 1 to 5."""
    return min(5, max(1, math.floor(score + 0.5)))


def _stream(user_id: str, movies: tuple[Movie, ...], popularity: np.ndarray, rng: np.random.Generator) -> list[Event]:
    """One user's ratings, oldest first: a movie is rated at most once, and never before it is available."""
    count = int(np.clip(np.exp(rng.normal(4.7, 0.75)), MIN_EVENTS, MAX_EVENTS))
    span = (END - START) / timedelta(microseconds=1)
    first = rng.uniform(0.0, 0.6) * span
    # Lifelong users stay to the end; short ones may leave early.
    last = span if count > 60 else rng.uniform(first / span + 0.15, 1.0) * span
    offsets = np.sort(rng.uniform(first, last, count)).astype(np.int64)
    start_us = _microseconds(START)
    available_us = np.array([_microseconds(m.available_at) for m in movies])
    bias = float(rng.normal(0.0, 0.25))
    taste = draw_taste(rng)
    later = taste | draw_taste(rng, rng.permutation(np.array(list(TASTE_WEIGHTS)))[:DRIFTING_FACTORS].tolist())
    change_at = count * rng.uniform(0.35, 0.65)
    seen = np.zeros(len(movies), dtype=bool)
    events = []
    for number, offset in enumerate(offsets):
        ts = start_us + int(offset)
        age_us = ts - available_us
        weights = popularity * (age_us >= 0) * ~seen
        weights = np.where(age_us < NEW_RELEASE_DAYS * 86_400_000_000, NEW_RELEASE_BOOST, 1.0) * weights
        pick = int(rng.choice(len(movies), p=weights / weights.sum()))
        seen[pick] = True
        score = expected_stars(movies[pick], taste if number < change_at else later, bias)
        stars = to_stars(score + float(rng.normal(0.0, NOISE_STARS)))
        events.append(Event(user_id, movies[pick].item_id, ts, stars, score))
    return events


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def behaviours_table(world: World) -> pa.Table:
    """The events in the contract's columns; `value` is stars."""
    events = world.events
    return pa.table(
        {
            "user_id": [e.user_id for e in events],
            "item_id": [e.item_id for e in events],
            "ts": pa.array([e.ts_us for e in events], TIMESTAMP),
            "value": pa.array([e.stars for e in events], pa.float32()),
            "action": [DEFAULT_ACTION] * len(events),
        },
        schema=BEHAVIOURS,
    )


def items_table(world: World) -> pa.Table:
    """Id, title, `genres` and `available_at`: nothing of what is hidden."""
    schema = ITEMS.append(pa.field("genres", pa.list_(pa.string()))).append(pa.field("available_at", TIMESTAMP))
    movies = world.movies
    return pa.table(
        {
            "item_id": [m.item_id for m in movies],
            "title": [m.title for m in movies],
            "genres": [list(m.genres) for m in movies],
            "available_at": [m.available_at for m in movies],
        },
        schema=schema,
    )


def users_table(world: World) -> pa.Table:
    """Id and `age_band`, which says nothing about taste and reaches no prompt."""
    schema = USERS.append(pa.field("age_band", pa.string()))
    return pa.table({"user_id": list(world.user_ids), "age_band": list(world.age_bands)}, schema=schema)


def write_inputs(world: World, folder: Path) -> dict[str, Path]:
    """Paths of behaviours.parquet, items.parquet and users.parquet, written to `folder` (made if absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"behaviours": behaviours_table(world), "items": items_table(world), "users": users_table(world)}
    paths = {name: folder / f"{name}.parquet" for name in tables}
    for name, table in tables.items():
        pq.write_table(table, paths[name])
    return paths


def main() -> None:
    """Write the input tables to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Write the demo world's input tables.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help=f"{N_USERS_SMALL} users instead of {N_USERS}")
    arguments = parser.parse_args()
    world = make_world(small=arguments.small)
    for path in write_inputs(world, arguments.folder).values():
        print(path)
    print(f"{len(world.events)} events, {len(world.user_ids)} users, {len(world.movies)} movies")


if __name__ == "__main__":
    main()
