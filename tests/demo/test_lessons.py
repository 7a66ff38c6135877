"""The lessons' rule, their words, and the reading back that the evaluation relies on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.catalogue import HIDDEN, Movie, make_catalogue
from demo.lessons import (
    EVIDENCE_STARS,
    SUMMARY_FACTORS,
    SUPPORTED_FACTORS,
    VALUES,
    Preference,
    item_answer,
    preference,
    random_history,
    stated_facts,
    stated_like,
    summary_answer,
    values_of,
)
from demo.wording import BRIEF_FACTS

MOVIES = make_catalogue()


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Movie, int]]:
    movies = draw(st.lists(st.sampled_from(MOVIES), min_size=1, max_size=30, unique_by=lambda m: m.item_id))
    return [(movie, draw(st.integers(1, 5))) for movie in movies]


def naive_preference(history: list[tuple[Movie, int]], factor: str) -> Preference:
    sums = {value: sum(s - 3.5 for m, s in history if value in values_of(m, factor)) for value in VALUES[factor]}
    # max and min keep the first of equals, and `sums` is in the order of VALUES.
    best, worst = max(sums, key=lambda v: sums[v]), min(sums, key=lambda v: sums[v])
    likes = best if sums[best] >= EVIDENCE_STARS else None
    dislikes = worst if sums[worst] <= -EVIDENCE_STARS else None
    rated = [(m, s) for m, s in history if likes in values_of(m, factor)]
    top = max((s for _, s in rated), default=0)
    support = next((m.title for m, s in rated if s == top), None)
    return Preference(likes, dislikes, support if factor in SUPPORTED_FACTORS else None)


@given(histories())
@settings(max_examples=60, deadline=None)
def test_the_rule_equals_its_naive_form_and_is_read_back_from_its_words(history: list[tuple[Movie, int]]) -> None:
    brief = summary_answer(history, brief=True)
    for factor in SUMMARY_FACTORS:
        assert preference(history, factor) == naive_preference(history, factor)
        assert stated_like(brief, factor) == preference(history, factor).likes


def test_weak_evidence_states_no_preference() -> None:
    movie = MOVIES[0]
    found = preference([(movie, 4)], "mood")
    assert found == Preference(None, None, None)
    assert "unclear" in summary_answer([(movie, 4)])
    assert summary_answer([(movie, 4)], brief=True) == "The user has no clear preference."


def test_facts_name_every_attribute_of_the_movie_and_no_other_value() -> None:
    for movie in MOVIES:
        answer = item_answer(movie)
        assert all(stated_facts(answer, factor) == {movie.hidden[factor]} for factor in HIDDEN)
        brief = item_answer(movie, brief=True)
        assert all(stated_facts(brief, factor) == {movie.hidden[factor]} for factor in BRIEF_FACTS)


@pytest.mark.parametrize("length", [1, 10, 50])
def test_random_histories_repeat_with_their_generator_and_hold_each_movie_once(length: int) -> None:
    first = random_history(MOVIES, length, np.random.default_rng(3))
    assert first == random_history(MOVIES, length, np.random.default_rng(3))
    assert len({movie.item_id for movie, _ in first}) == length
