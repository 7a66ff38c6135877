"""The demo world's invented movies: titles and genres that everybody sees, and attributes that no table holds.

The pocket LLM is trained on exactly this catalogue, so it depends on no argument: every world, small or full, shares
it. Attribute values are drawn independently of titles and genres: neither gives the others away.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

N_MOVIES = 600
CATALOGUE_SEED = 7

# The world's time, half-open.
START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2026, 1, 1, tzinfo=UTC)
# Released in the last quarter of the time, so that held-out time has movies without a single training event.
LATE_SHARE = 0.22
LATE_FROM = START + (END - START) * 0.75
LATE_UNTIL = START + (END - START) * 0.96

GENRES = ("comedy", "western", "mystery", "romance", "adventure", "fantasy", "crime", "documentary")

# Attributes that stand in no table: factor -> values. The words are far apart in meaning, so that a text encoder can
# tell them apart; `acclaim` goes from the best to the worst quality.
HIDDEN: dict[str, tuple[str, ...]] = {
    "director": ("Ilse Marrow", "Tomas Quill", "Wanda Osei", "Rafael Brandt", "Mei Castellane", "Idris Halloran"),
    "country": ("Iceland", "Peru", "Japan", "Morocco", "Canada", "India"),
    "period": ("1890s", "1920s", "1960s", "1990s", "near future"),
    "character": (
        "retired detective",
        "teenage runaway",
        "village nurse",
        "charming thief",
        "lonely inventor",
        "soldier",
    ),
    "theme": (
        "revenge",
        "first love",
        "family secrets",
        "wilderness survival",
        "political corruption",
        "intelligent robots",
    ),
    "mood": ("gloomy", "cheerful", "suspenseful", "dreamlike", "satirical", "heartwarming"),
    "soundtrack": ("solo piano", "synthesizers", "folk guitar", "full orchestra", "jazz trumpet", "choral singing"),
    "acclaim": ("acclaimed", "respected", "mixed", "panned"),
}

# Made-up place names and plain nouns: no title of a real film is meant.
_PLACES = (
    "Ostermoor", "Velkin", "Brindlemoor", "Harrowick", "Quenby", "Tarnholt", "Wexmere", "Lorrimond", "Pellaway",
    "Saltrey", "Dunmarrow", "Ivelstone", "Corvane", "Ashwell", "Mirrowby", "Thistledon", "Galloreen", "Fennick",
    "Rookhurst", "Yarrowsea",
)  # fmt: skip
_NOUNS = (
    "Lantern", "Orchard", "Ledger", "Ferry", "Compass", "Almanac", "Staircase", "Carnival", "Telegram", "Greenhouse",
    "Clockwork", "Harvest", "Mirror", "Procession", "Reservoir", "Umbrella", "Viaduct", "Whistle", "Archive", "Balcony",
    "Cathedral", "Daybreak", "Eclipse", "Festival", "Gambit", "Horizon", "Interlude", "Junction", "Kettle", "Labyrinth",
    "Meridian", "Nightfall", "Overture", "Parade", "Quarry", "Riddle", "Signal", "Tapestry", "Undertow", "Voyage",
)  # fmt: skip


@dataclass(frozen=True)
class Movie:
    """One movie. `genres` and `available_at` stand in the items table; `hidden` (factor -> value) and `quality` do not.

    `quality` moves every rating of the movie, in stars; `acclaim` says it in words.
    """

    item_id: str
    title: str
    genres: tuple[str, ...]
    available_at: datetime
    late: bool
    hidden: dict[str, str]
    quality: float


def make_catalogue() -> tuple[Movie, ...]:
    """The 600 movies, in order of item id; the same on every machine."""
    rng = np.random.default_rng(CATALOGUE_SEED)
    pairs = rng.permutation(len(_PLACES) * len(_NOUNS))[:N_MOVIES]
    with_article = rng.random(N_MOVIES) < 0.3
    late = np.zeros(N_MOVIES, dtype=bool)
    late[rng.permutation(N_MOVIES)[: round(LATE_SHARE * N_MOVIES)]] = True
    late_days = rng.uniform(0, (LATE_UNTIL - LATE_FROM) / timedelta(days=1), N_MOVIES)
    early_days = rng.uniform(30, 3650, N_MOVIES)
    quality = np.round(rng.normal(0.0, 0.3, N_MOVIES), 3)
    hidden = {factor: _balanced(rng, len(values)) for factor, values in HIDDEN.items() if factor != "acclaim"}
    hidden["acclaim"] = np.argsort(np.argsort(-quality)) * len(HIDDEN["acclaim"]) // N_MOVIES
    first_genre = _balanced(rng, len(GENRES))
    second_genre = (first_genre + rng.integers(1, len(GENRES), N_MOVIES)) % len(GENRES)
    has_second = rng.random(N_MOVIES) < 0.35
    movies = []
    for i in range(N_MOVIES):
        place, noun = _PLACES[pairs[i] // len(_NOUNS)], _NOUNS[pairs[i] % len(_NOUNS)]
        genres = (GENRES[first_genre[i]], GENRES[second_genre[i]]) if has_second[i] else (GENRES[first_genre[i]],)
        released = (
            LATE_FROM + timedelta(days=int(late_days[i])) if late[i] else START - timedelta(days=int(early_days[i]))
        )
        movies.append(
            Movie(
                item_id=f"m{i:04d}",
                title=f"{'The ' if with_article[i] else ''}{place} {noun}",
                genres=genres,
                available_at=released,
                late=bool(late[i]),
                hidden={factor: values[hidden[factor][i]] for factor, values in HIDDEN.items()},
                quality=float(quality[i]),
            )
        )
    return tuple(movies)


def _balanced(rng: np.random.Generator, n_values: int) -> np.ndarray:
    """[N_MOVIES] value numbers in random order, each about equally often."""
    return rng.permutation(np.arange(N_MOVIES) % n_values)
