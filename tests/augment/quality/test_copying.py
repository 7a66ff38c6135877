"""Leaks: prompts that come back, tags and chat-template tokens."""

import pytest

from augment.quality.copying import copying, leaked_token
from augment.quality.grounding import catalogue_keys
from augment.quality.words import split_words
from prompts.render import HistoryLine, PromptWriter
from prompts.scenario import load_scenario

SCENARIO = load_scenario("movies")
PROMPT = PromptWriter(SCENARIO).user_summary([HistoryLine(f"The Quiet Lamp of Street {n}", 4.0) for n in range(8)])
OWN = "The user enjoys calm harbour stories with patient heroes and dislikes loud chases through crowded markets."


def measures(prompt: str, text: str, names: tuple[str, ...] = ()) -> dict[str, float]:
    return copying(prompt, split_words(text), SCENARIO.user_factors, catalogue_keys(names))


def test_an_answer_of_its_own_words_copies_nothing() -> None:
    assert measures(PROMPT, OWN) == {"copied_share": 0, "echoed_words": 0, "echoed_share": 0}


def test_a_prompt_that_comes_back_is_copied_and_echoed() -> None:
    found = measures(PROMPT, PROMPT)
    assert found["echoed_share"] > 0.9
    assert found["echoed_words"] > 20
    assert measures("", PROMPT)["copied_share"] == 0


def test_the_prompt_among_other_text_is_echoed_without_being_most_of_it() -> None:
    found = measures(PROMPT, f"{PROMPT} {OWN * 30}")
    assert found["copied_share"] < 0.2
    assert found["echoed_share"] > 0.9


def test_taking_up_one_of_the_prompts_sentences_is_half_an_echo_at_most() -> None:
    found = measures(PROMPT, f"These are movies that one user watched and rated, oldest first. {OWN}")
    assert 8 <= found["echoed_words"] < 20


def test_quoted_titles_and_factors_may_come_back() -> None:
    history = PROMPT.split("<history>")[1].split("</history>")[0]
    assert measures(PROMPT, f"{history} {OWN}")["copied_share"] == 0
    assert measures(PROMPT, ", ".join(SCENARIO.user_factors) + OWN)["copied_share"] == 0


def test_titles_that_a_prompt_does_not_quote_are_known_from_the_catalogue() -> None:
    titles = ("The Quiet Lamp", "A Long Way to the Harbour", "Two Thieves and a Dog", "Nobody Counts the Waves")
    prompt = f"Given a set of movies consisting of {', '.join(titles)}, please describe them."
    answer = f"{', '.join(titles)} are about the sea."
    assert measures(prompt, answer)["copied_share"] > 0.5
    assert measures(prompt, answer, titles)["copied_share"] == 0


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("A calm story.<|im_end|>", "<|im_end|>"),
        ("A calm\nstory.</s>", "</s>"),
        ("<think>What does the user want?", "<think>"),
        ("[MY_TOKEN] A calm story.", "[MY_TOKEN]"),
        ("</history> A calm story.", "</history>"),
        ("< History > A calm story.", "< History >"),
        ("It is <b>calm</b>, and 3 < 4 > 2.", None),
        ("<item> A calm story.", None),
        (OWN, None),
    ],
)
def test_a_token_of_the_template_or_a_tag_of_the_prompt_is_found(text: str, token: str | None) -> None:
    assert leaked_token(PROMPT, text, ("[MY_TOKEN]",)) == token
