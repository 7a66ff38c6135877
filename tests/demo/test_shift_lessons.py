"""What is new in a summary: the rule, its words, and when partitions may have been."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from demo.catalogue import END, START
from demo.lessons import SUMMARY_FACTORS, VALUES
from demo.pocket_batches import movie_writer
from demo.shift_lessons import new_values, random_shift, random_span, shift_lesson, shift_steps, stated_new

summaries = st.fixed_dictionaries({f: st.sampled_from((None, *VALUES[f])) for f in SUMMARY_FACTORS})


@given(summaries, summaries)
def test_new_is_what_the_current_summary_states_and_the_previous_one_does_not(
    previous: dict[str, str | None], current: dict[str, str | None]
) -> None:
    answer = shift_lesson(movie_writer(), previous, current).answer
    for factor in SUMMARY_FACTORS:
        # Values of different factors are different texts, so sets of them are enough.
        new = {current[factor]} - {previous[factor]} - {None}
        assert {stated_new(answer, factor)} - {None} == new
        assert new_values(previous, current)[factor] in (new or {None})


@given(summaries)
def test_equal_summaries_have_the_same_preferences(summary: dict[str, str | None]) -> None:
    assert shift_lesson(movie_writer(), summary, summary).answer == "The preferences are the same."


@given(summaries, summaries)
def test_steps_hold_what_each_sentence_adds(previous: dict[str, str | None], current: dict[str, str | None]) -> None:
    steps = shift_steps(previous, current)
    sentences = [max(1, sum(value is not None for value in values.values())) for values in (previous, current)]
    assert steps.shape == (sum(sentences), 2 * len(SUMMARY_FACTORS) + 1)

    def named(row: np.ndarray) -> dict[str, str | None]:
        return {f: (*VALUES[f], None)[n] for f, n in zip(SUMMARY_FACTORS, row, strict=True)}

    half = len(SUMMARY_FACTORS)
    new = new_values(previous, current)
    assert named(steps[-1, :half]) == new
    assert named(steps[-1, half:-1]) == named(steps[sentences[0] - 1, half:-1]) == previous
    assert all(set(named(row[:half]).values()) == {None} for row in steps[: sentences[0]])
    # A sentence of the current summary adds its value, or is not new.
    grown = [sum(value is not None for value in named(row[:half]).values()) for row in steps[sentences[0] - 1 :]]
    assert np.diff(grown).tolist() == steps[sentences[0] :, -1].tolist()
    assert not steps[: sentences[0], -1].any()


def test_what_has_faded_is_not_new() -> None:
    nothing = dict.fromkeys(SUMMARY_FACTORS)
    lesson = shift_lesson(movie_writer(), nothing | {"mood": "gloomy"}, nothing | {"theme": "revenge"})
    assert lesson.answer == "The preferred theme is now revenge."
    assert "gloomy" in lesson.prompt


def test_random_shifts_reach_from_the_same_to_all_new() -> None:
    rng = np.random.default_rng(2)
    changes = [sum(value is not None for value in new_values(*random_shift(rng)).values()) for _ in range(300)]
    assert set(changes) == set(range(len(SUMMARY_FACTORS) + 1))


def test_random_spans_lie_in_the_worlds_time_and_begin_in_every_way() -> None:
    rng = np.random.default_rng(2)
    spans = [random_span(rng) for _ in range(300)]
    assert all(START <= span.opened_at <= span.sealed_at <= END for span in spans)
    gaps = [span.opened_at - span.previous_end for span in spans if span.previous_end is not None]
    assert 0 < len(gaps) < len(spans)
    assert min(gaps).days < 0 < max(gaps).days
