"""Lessons about groups: what the movies have in common that stand for a group of users or of movies (REKI)."""

from collections.abc import Sequence

import numpy as np

from demo.catalogue import Movie
from demo.lessons import SUMMARY_FACTORS, VALUES, Lesson, said, stated, stated_facts, values_of
from demo.wording import BRIEF_FACTS, DISLIKED, FACTS, LIKES, NO_DISLIKE, NO_PREFERENCE, NOTHING_SHARED
from demo.world import TASTE_WEIGHTS, draw_taste
from prompts.render import Kind, PromptWriter

GROUP_KINDS = (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS)
# A value is common that one movie in so many has. Few lists that stand for a group of the demo world agree by half on
# anything: the most common value of a factor has a share of 0.3 to 0.45.
COMMON_ONE_IN = 3
# Two movies at least have to agree, unless there is only one.
COMMON_COUNT = 2
# The named movies of a group, at most; the configuration's default.
MAX_NAMED = 15


def group_factors(kind: Kind) -> tuple[str, ...]:
    """The factors that an answer of this kind goes through."""
    return BRIEF_FACTS if kind is Kind.GROUP_ITEMS else SUMMARY_FACTORS


def counts(movies: Sequence[Movie], factor: str) -> np.ndarray:
    """How many of the movies have each value of a factor (order of VALUES); one of two genres counts for both."""
    return np.array([sum(value in values_of(movie, factor) for movie in movies) for value in VALUES[factor]])


def common(movies: Sequence[Movie], factor: str) -> str | None:
    """The rule that defines a right answer: the value that most of the movies have, None where too few have it.

    Too few are fewer than one in COMMON_ONE_IN, or fewer than COMMON_COUNT of several. Ties go to the value that comes
    first in VALUES.
    """
    found = counts(movies, factor)
    return VALUES[factor][int(found.argmax())] if found.max() >= _enough(len(movies)) else None


def common_steps(movies: Sequence[Movie]) -> np.ndarray:
    """[movies, factors] int64: by the rule, the value numbers common in the first 1, 2, ... movies.

    The columns are SUMMARY_FACTORS; the number after a factor's last value is none.
    """
    enough = np.array([_enough(length) for length in range(1, len(movies) + 1)])
    columns = []
    for factor in SUMMARY_FACTORS:
        values = VALUES[factor]
        running = np.array([[value in values_of(movie, factor) for value in values] for movie in movies]).cumsum(axis=0)
        columns.append(np.where(running.max(axis=1) >= enough, running.argmax(axis=1), len(values)))
    return np.stack(columns, axis=1)


def _enough(length: int) -> int:
    return max(min(COMMON_COUNT, length), -(-length // COMMON_ONE_IN))


def group_answer(kind: Kind, movies: Sequence[Movie]) -> str:
    """What the movies have in common, one sentence per factor in which something is."""
    found = {factor: common(movies, factor) for factor in group_factors(kind)}
    if kind is Kind.GROUP_ITEMS:
        return " ".join(FACTS[factor][value] for factor, value in found.items() if value) or NOTHING_SHARED
    return said(*((LIKES, found, NO_PREFERENCE) if kind is Kind.GROUP_LIKES else (DISLIKED, found, NO_DISLIKE)))


def stated_common(kind: Kind, answer: str, factor: str) -> str | None:
    """The value of a factor that a group's answer states; None where it states none, or several."""
    if kind is Kind.GROUP_ITEMS:
        found = stated_facts(answer, factor)
        return found.pop() if len(found) == 1 else None
    return stated(LIKES if kind is Kind.GROUP_LIKES else DISLIKED, answer, factor)


def group_lesson(writer: PromptWriter, kind: Kind, movies: Sequence[Movie], size: int) -> Lesson:
    """The prompt for a group of `size` members that these movies stand for, and what they have in common."""
    prompt = writer.group(kind, [movie.title for movie in movies], size)
    return Lesson(prompt, group_answer(kind, movies), group=tuple(movies))


def random_group(movies: Sequence[Movie], length: int, rng: np.random.Generator) -> list[Movie]:
    """Different movies in random order, more or less alike: drawn by a taste that is anything from absent to strict."""
    taste, strictness = draw_taste(rng), rng.uniform(0.0, 2.5)
    appeal = np.array([sum(taste[f][v] for f in TASTE_WEIGHTS for v in values_of(movie, f)) for movie in movies])
    # The largest of appeal + Gumbel noise are a draw without replacement in proportion to exp(appeal).
    picks = np.argsort(-(strictness * appeal + rng.gumbel(size=len(movies))))[:length]
    return [movies[pick] for pick in rng.permutation(picks)]
