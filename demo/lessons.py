"""What the pocket LLM should answer: facts of a movie, and preferences that a list of rated movies shows.

Prompts are those that `prompts` renders with the shipped `movies` scenario. Answers go factor by factor, always in
the same order, and each value has its own wording: varied English that a very small model can still learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demo.catalogue import GENRES, HIDDEN, Movie
from demo.wording import A_GENRE, BRIEF_FACTS, DISLIKES, FACTS, LIKES, NO_LIKES, NO_PREFERENCE, PHRASES
from demo.world import draw_taste, expected_stars, to_stars
from prompts.render import HistoryLine, PromptWriter, Span

# Between 3 and 4 stars: about half of all ratings lie on either side.
NEUTRAL_STARS = 3.5
# A preference is stated when the stars above (below) neutral of its movies add up to at least this many.
EVIDENCE_STARS = 1.5

# Factors that a summary goes through, in the order of the scenario's prompt.
SUMMARY_FACTORS = ("genre", "director", "character", "theme", "mood")
# Factors whose sentence names a title; one in every sentence would be more about titles than about tastes.
SUPPORTED_FACTORS = ("theme", "mood")
VALUES: dict[str, tuple[str, ...]] = {"genre": GENRES, **HIDDEN}


@dataclass(frozen=True)
class Lesson:
    """One prompt and the answer to learn.

    `history` is the list that a summary is about, `group` that of a group, `summaries` the two of a shift as likes per
    factor.
    """

    prompt: str
    answer: str
    history: tuple[tuple[Movie, int], ...] = ()
    group: tuple[Movie, ...] = ()
    summaries: tuple[Mapping[str, str | None], ...] = ()


@dataclass(frozen=True)
class Preference:
    """What a list says about one factor: the value liked and the one disliked, None where the evidence is too weak."""

    likes: str | None
    dislikes: str | None
    support: str | None


def phrase(factor: str, value: str) -> str:
    """How `value` reads in a summary."""
    return PHRASES.get(factor, {}).get(value, value)


def values_of(movie: Movie, factor: str) -> tuple[str, ...]:
    """The movie's values of a factor: one, or one or two genres."""
    return movie.genres if factor == "genre" else (movie.hidden[factor],)


def item_answer(movie: Movie, brief: bool = False) -> str:
    """The movie's facts in sentences, in the order of the scenario's item factors; `brief` ones without the title."""
    if brief:
        return " ".join(FACTS[factor][movie.hidden[factor]] for factor in BRIEF_FACTS)
    genres = " and ".join(A_GENRE[genre] for genre in movie.genres)
    facts = " ".join(FACTS[factor][movie.hidden[factor]] for factor in FACTS)
    return f'"{movie.title}" is {genres}. {facts}'


def scores(history: Sequence[tuple[Movie, int]], factor: str) -> np.ndarray:
    """Stars above neutral, summed per value of a factor (order of VALUES); a movie of two genres counts for both."""
    totals = np.zeros(len(VALUES[factor]))
    for movie, stars in history:
        for value in values_of(movie, factor):
            totals[VALUES[factor].index(value)] += stars - NEUTRAL_STARS
    return totals


def preference(history: Sequence[tuple[Movie, int]], factor: str) -> Preference:
    """The rule that defines a right summary.

    Liked is the value with the highest sum of stars above neutral, disliked the one with the lowest, each only where
    the sum reaches EVIDENCE_STARS in size; ties go to the value that comes first in VALUES. The supporting title, for
    SUPPORTED_FACTORS, is the first of the movies rated highest among those with the liked value.
    """
    totals = scores(history, factor)
    likes = VALUES[factor][int(totals.argmax())] if totals.max() >= EVIDENCE_STARS else None
    dislikes = VALUES[factor][int(totals.argmin())] if totals.min() <= -EVIDENCE_STARS else None
    support = None
    if likes is not None and factor in SUPPORTED_FACTORS:
        support = max((m for m in history if likes in values_of(m[0], factor)), key=lambda m: m[1])[0].title
    return Preference(likes, dislikes, support)


def preference_steps(history: Sequence[tuple[Movie, int]]) -> np.ndarray:
    """[events, 2 * factors] int64: by the rule, value numbers liked and disliked in the first 1, 2, ... events.

    The columns are SUMMARY_FACTORS' liked values, then their disliked ones; the number after the last is none.
    """
    liked, disliked = [], []
    for factor in SUMMARY_FACTORS:
        values = VALUES[factor]
        stars = np.array([[(n - NEUTRAL_STARS) * (v in values_of(m, factor)) for v in values] for m, n in history])
        totals = stars.cumsum(axis=0)
        liked.append(np.where(totals.max(axis=1) >= EVIDENCE_STARS, totals.argmax(axis=1), len(values)))
        disliked.append(np.where(totals.min(axis=1) <= -EVIDENCE_STARS, totals.argmin(axis=1), len(values)))
    return np.stack([*liked, *disliked], axis=1)


def summary_answer(history: Sequence[tuple[Movie, int]], brief: bool = False) -> str:
    """The preferences that a list shows, one sentence per factor; a `brief` answer says only what is liked."""
    if brief:
        return said(LIKES, {factor: preference(history, factor).likes for factor in SUMMARY_FACTORS}, NO_PREFERENCE)
    return " ".join(_sentence(factor, preference(history, factor)) for factor in SUMMARY_FACTORS)


def said(forms: Mapping[str, str], values: Mapping[str, str | None], nothing: str) -> str:
    """One sentence of `forms` for each factor that has a value; `nothing` where none has."""
    found = [forms[factor].format(phrase(factor, value)) + "." for factor, value in values.items() if value]
    return " ".join(found) or nothing


def _sentence(factor: str, found: Preference) -> str:
    text = NO_LIKES[factor] if found.likes is None else LIKES[factor].format(phrase(factor, found.likes))
    if found.support is not None:
        text += f' ("{found.support}")'
    if found.dislikes is not None:
        text += DISLIKES[factor].format(_disliked(factor, found.dislikes))
    return f"{text}."


def _disliked(factor: str, value: str) -> str:
    # A bare mood: with its images the text would be as much about what is rejected as about what is liked.
    return value if factor == "mood" else phrase(factor, value)


def stated_facts(answer: str, factor: str) -> set[str]:
    """The values of a factor that an item's answer states: one, if the answer is sound."""
    return {value for value, sentence in FACTS[factor].items() if sentence in answer}


def stated(forms: Mapping[str, str], answer: str, factor: str) -> str | None:
    """The value of a factor that an answer states in a sentence of `forms`; None where it states none, or several."""
    sentences = {forms[factor].format(phrase(factor, value)) + ".": value for value in VALUES[factor]}
    found = [value for sentence, value in sentences.items() if sentence in answer]
    return found[0] if len(found) == 1 else None


def stated_like(answer: str, factor: str) -> str | None:
    """The value of a factor that a brief summary states as liked; None where it states none, or none that exists."""
    return stated(LIKES, answer, factor)


def item_lesson(writer: PromptWriter, movie: Movie, brief: bool = False) -> Lesson:
    """The movie's prompt, as the pipeline renders it from the items table, and its facts."""
    return Lesson(writer.item_facts(movie.title, {"genres": list(movie.genres)}), item_answer(movie, brief))


def summary_lesson(
    writer: PromptWriter, history: Sequence[tuple[Movie, int]], brief: bool = False, span: Span | None = None
) -> Lesson:
    """The prompt for a list of rated movies, oldest first, and the preferences it shows."""
    lines = [HistoryLine(movie.title, float(stars)) for movie, stars in history]
    return Lesson(writer.user_summary(lines, span=span), summary_answer(history, brief), tuple(history))


def random_history(movies: Sequence[Movie], length: int, rng: np.random.Generator) -> list[tuple[Movie, int]]:
    """A list of different movies rated by a taste drawn for it; no list of a demo user enters training."""
    taste = draw_taste(rng)
    bias = float(rng.normal(0.0, 0.35))
    picks = rng.choice(len(movies), size=length, replace=False)
    noise = rng.normal(0.0, 1.0, length)
    return [
        (movies[pick], to_stars(expected_stars(movies[pick], taste, bias) + float(noise[n])))
        for n, pick in enumerate(picks)
    ]
