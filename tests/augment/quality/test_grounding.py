"""Titles and names that neither prompt nor catalogue knows."""

import pytest

from augment.quality.grounding import catalogue_keys, grounding

CATALOGUE = catalogue_keys(["Quiet Lamp, The (1999)", "Harbour: A Love Story", "Ilse Marrow", "drama"])
PROMPT = 'Title: "Two Thieves (2001)"\nDirector: Wanda Osei'


def measures(text: str) -> dict[str, float]:
    return grounding(PROMPT, text, CATALOGUE)


@pytest.mark.parametrize(
    "title",
    [
        "The Quiet Lamp",
        "Quiet Lamp, The",
        "The Quiet Lamp (1999)",
        "the quiet lamp".title(),
        "Two Thieves",
        "Two Thieves (2001),",
        "Harbour",
        "Harbour: A Love Story",
    ],
)
def test_a_title_is_known_in_any_of_its_forms(title: str) -> None:
    assert measures(f'It is like "{title}".') == {
        "quoted_titles": 1,
        "ungrounded_title_share": 0,
        "ungrounded_name_share": 0,
    }


def test_the_share_counts_each_title_once() -> None:
    found = measures('"The Quiet Lamp", "Nightfall", "Nightfall" and \u201cTwo Thieves\u201d or \u00abDawn\u00bb.')
    assert found["quoted_titles"] == 4
    assert found["ungrounded_title_share"] == 0.5


def test_what_is_no_title_is_not_looked_up() -> None:
    long = "A " + "very " * 25 + "long citation"
    assert measures(f'It is "quiet", ends in "", and "{long}" 5\'10".')["quoted_titles"] == 0


def test_unquoted_names_are_measured_apart() -> None:
    found = measures("Ilse Marrow and Wanda Osei directed it with Rafael Brandt and J. K. Quill of Peru.")
    assert found["quoted_titles"] == 0
    assert found["ungrounded_name_share"] == 0.5
