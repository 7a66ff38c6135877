"""Factors that an answer touches."""

import pytest

from augment.quality.coverage import coverage, factor_stems, stem
from augment.quality.words import split_words
from prompts.scenario import SHIPPED, load_scenario


def share(factors: list[str], text: str) -> float:
    return coverage(factor_stems(factors), split_words(text))


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        ("genre", "Its genres differ."),
        ("genre", "A romantic comedy."),
        ("director and cast", "It was directed by nobody."),
        ("director and cast", "starring two dogs"),
        ("mood and tone", "gloomy, full of rain"),
        ("critical acclaim and awards", "It won an Oscar."),
        ("time period and country", "in the 19th century"),
        ("robots", "One robot too many."),
    ],
)
def test_a_factor_is_touched_by_its_name_and_by_words_that_belong_to_it(factor: str, text: str) -> None:
    assert share([factor], text) == 1


@pytest.mark.parametrize(
    ("factor", "text"), [("director and cast", "salt and pepper"), ("genre", "General remarks"), ("robots", "")]
)
def test_a_factor_is_not_touched_by_fillers_or_look_alikes(factor: str, text: str) -> None:
    assert share([factor], text) == 0


def test_coverage_is_the_share_of_factors() -> None:
    assert share(["genre", "soundtrack", "price", "robots"], "A comedy with piano.") == 0.5
    assert share([], "anything") == 1


@pytest.mark.parametrize("scenario", SHIPPED)
def test_an_answer_that_names_every_factor_of_a_shipped_scenario_covers_it(scenario: str) -> None:
    factors = list(load_scenario(scenario).item_factors)
    assert share(factors, "; ".join(factors)) == 1


def test_forms_of_a_word_share_a_stem() -> None:
    assert stem("directors") == stem("directed") == stem("direction") == "direct"
    assert stem("mass") == "mass"
    assert stem("his") == "his"
