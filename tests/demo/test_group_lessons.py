"""What movies have in common: the rule against its naive form, its words, and the reading back."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.catalogue import Movie, make_catalogue
from demo.group_lessons import (
    GROUP_KINDS,
    common,
    common_steps,
    group_answer,
    group_factors,
    group_lesson,
    random_group,
    stated_common,
)
from demo.lessons import SUMMARY_FACTORS, VALUES, values_of
from demo.pocket_batches import movie_writer
from prompts.render import Kind

MOVIES = make_catalogue()
NOTHING = {
    Kind.GROUP_LIKES: "The user has no clear preference.",
    Kind.GROUP_DISLIKES: "The user has no clear dislike.",
    Kind.GROUP_ITEMS: "These movies share nothing.",
}

named = st.lists(st.sampled_from(MOVIES), min_size=1, max_size=20, unique_by=lambda m: m.item_id)


def naive_common(movies: list[Movie], factor: str) -> str | None:
    seen = Counter(value for movie in movies for value in values_of(movie, factor))
    # The first of equals, in the order of VALUES.
    best = max(VALUES[factor], key=lambda value: seen[value])
    if len(movies) == 1:
        return best
    return best if seen[best] >= 2 and 3 * seen[best] >= len(movies) else None


@given(named, st.sampled_from(GROUP_KINDS))
@settings(max_examples=60, deadline=None)
def test_the_rule_equals_its_naive_form_and_is_read_back_from_its_words(movies: list[Movie], kind: Kind) -> None:
    answer = group_answer(kind, movies)
    found = [common(movies, factor) for factor in group_factors(kind)]
    assert found == [naive_common(movies, factor) for factor in group_factors(kind)]
    assert [stated_common(kind, answer, factor) for factor in group_factors(kind)] == found
    assert (answer == NOTHING[kind]) == (set(found) == {None})


@given(named)
@settings(max_examples=30, deadline=None)
def test_steps_are_the_rule_of_every_beginning(movies: list[Movie]) -> None:
    steps = common_steps(movies)
    assert steps.shape == (len(movies), len(SUMMARY_FACTORS))
    for row, end in zip(steps, range(1, len(movies) + 1), strict=True):
        for number, factor in zip(row, SUMMARY_FACTORS, strict=True):
            assert (*VALUES[factor], None)[number] == common(movies[:end], factor)


def test_a_value_that_one_in_three_has_is_common_and_a_rarer_one_is_not() -> None:
    by_mood = {mood: [m for m in MOVIES if m.hidden["mood"] == mood] for mood in VALUES["mood"]}
    gloomy, *others = by_mood.values()
    rest = [movies[n] for movies in others for n in range(2)]
    assert common(gloomy[:5] + rest, "mood") == "gloomy"
    assert common(gloomy[:4] + rest, "mood") is None


@pytest.mark.parametrize("kind", GROUP_KINDS)
def test_a_prompt_shows_each_title_and_the_size(kind: Kind) -> None:
    lesson = group_lesson(movie_writer(), kind, MOVIES[:15], 37)
    assert all(f'"{movie.title}"' in lesson.prompt for movie in MOVIES[:15])
    assert "group of 37 " in lesson.prompt


def test_random_groups_repeat_with_their_generator_hold_each_movie_once_and_differ_in_likeness() -> None:
    lists = [random_group(MOVIES, 15, np.random.default_rng(seed)) for seed in range(40)]
    assert lists == [random_group(MOVIES, 15, np.random.default_rng(seed)) for seed in range(40)]
    assert all(len({movie.item_id for movie in movies}) == 15 for movies in lists)
    found = [sum(common(movies, factor) is not None for factor in SUMMARY_FACTORS) for movies in lists]
    assert min(found) <= 2
    assert max(found) == 5
