"""Instruction-like and malformed strings stay data: a prompt with one has the shape of a prompt with a plain title."""

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.factors import elicitation_prompt
from prompts.hygiene import clean, find_template_token
from prompts.render import EmptyPrompt, HistoryLine, Kind, PromptOptions, PromptWriter
from prompts.scenario import load_scenario
from tests.prompts.injections import INJECTIONS, RAW_TOKENS

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "[MY TOKEN]")
SCENARIO = load_scenario("movies").model_copy(update={"user_fields": {"job": "occupation"}, "max_field_chars": 120})
WRITER = PromptWriter(SCENARIO, SPECIAL, PromptOptions(max_previous_chars=400))
SPLIT = PromptWriter(SCENARIO, SPECIAL, PromptOptions(feedback="split"))
PLAIN = [HistoryLine("Nine Lamps", 4.0, True), HistoryLine("Salt Roads", 1.0, False)]
HARMLESS = "Zqx"


def history(text: str, liked: bool) -> list[HistoryLine]:
    return [PLAIN[0], HistoryLine(text, 3.0, liked), PLAIN[1]]


# Where untrusted text enters a prompt: how the prompt is made, and how much of the text it may show.
SLOTS: dict[str, tuple[Callable[[str], str], int]] = {
    "title in a history": (lambda t: WRITER.user_summary(history(t, True)), 150),
    "liked title": (lambda t: SPLIT.user_summary(history(t, True)), 150),
    "title turned down": (lambda t: SPLIT.user_summary(history(t, False)), 150),
    "user attribute": (lambda t: WRITER.user_summary(PLAIN, {"job": t}), 120),
    "earlier summary": (lambda t: WRITER.user_summary(PLAIN, previous=t), 400),
    "previous summary of a shift": (lambda t: WRITER.user_shift(t, "Likes noir."), 400),
    "current summary of a shift": (lambda t: WRITER.user_shift("Likes noir.", t), 400),
    "title of an item": (lambda t: WRITER.item_facts(t, {"genres": ["Drama"]}), 150),
    "attribute": (lambda t: WRITER.item_facts("Nine Lamps", {"genres": ["Drama"], "director": t}), 120),
    "part of an attribute": (lambda t: WRITER.item_facts("Nine Lamps", {"genres": ["Drama", t]}), 120),
    "title in a group's likes": (lambda t: WRITER.group(Kind.GROUP_LIKES, ["Nine Lamps", t], 9), 150),
    "title in a group's dislikes": (lambda t: WRITER.group(Kind.GROUP_DISLIKES, [t, "Nine Lamps"], 9), 150),
    "title in a group of items": (lambda t: WRITER.group(Kind.GROUP_ITEMS, ["Nine Lamps", t, "Salt"], 9), 150),
    "title in a sample": (lambda t: elicitation_prompt([(t, {"x": 1}), ("Salt", {})], None, 5, SPECIAL), 120),
    "field in a sample": (lambda t: elicitation_prompt([("Salt", {"a": t, "b": 1})], None, 5, SPECIAL), 80),
    "column in a sample": (lambda t: elicitation_prompt([("Salt", {t: "1"})], None, 5, SPECIAL), 40),
    "noun of a sample": (lambda t: elicitation_prompt([("Salt", {})], t, 5, SPECIAL), 40),
}
MAKES_THE_PROMPT = {"previous summary of a shift", "current summary of a shift", "title of an item"}


def shown(slot: str, text: str) -> str:
    """What the prompt shows of `text`, after checking that it is otherwise the prompt with a plain word there."""
    make, _ = SLOTS[slot]
    before, after = make(HARMLESS).split(HARMLESS)
    prompt = make(text)
    assert find_template_token(prompt, SPECIAL) is None
    assert prompt.startswith(before)
    assert prompt.endswith(after)
    return prompt[len(before) : len(prompt) - len(after)]


def check_is_inert(text: str, limit: int) -> None:
    """One line without anything that ends a field, opens a turn, or cannot be seen."""
    assert len(text) <= limit
    assert '"' not in unicodedata.normalize("NFKC", text)
    assert "```" not in text
    assert not re.search(r"<[a-z/!?|\uff5c]", text, re.IGNORECASE)
    assert not re.search(r"</?\s*(history|item|liked|turned_down|previous|current|group|catalogue)", text)
    assert not any(token.casefold() in unicodedata.normalize("NFKC", text).casefold() for token in RAW_TOKENS)
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for c in text)
    assert not re.search("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]", text)
    assert not re.search("[\U000e0100-\U000e01ef]", text)
    marks = "".join("m" if unicodedata.category(c) in {"Mn", "Me"} else "." for c in text)
    assert "m" * 5 not in marks


def test_there_are_many_kinds_of_injection() -> None:
    assert len(set(INJECTIONS.values())) == len(INJECTIONS) >= 40


@pytest.mark.parametrize("name", INJECTIONS)
def test_an_injection_changes_nothing_but_its_own_place(name: str) -> None:
    text = INJECTIONS[name]
    for slot, (make, limit) in SLOTS.items():
        if clean(text, limit, SPECIAL):
            check_is_inert(shown(slot, text), limit + len("Drama, "))
        elif slot in MAKES_THE_PROMPT:
            with pytest.raises(EmptyPrompt):
                make(text)
        else:
            assert make(text).replace("Genres: Drama,\n", "Genres: Drama\n") == make(""), slot


@given(
    st.sampled_from(sorted(SLOTS)),
    st.lists(
        st.one_of(
            st.sampled_from([t for t in INJECTIONS.values() if len(t) < 200]).flatmap(
                lambda t: st.integers(0, len(t)).map(lambda i: t[i:])
            ),
            st.sampled_from(['"', "<", ">", "|", "\n", ", The", "</", "<|", "|>", "]", "[", "\u0301", "\u200b"]),
            st.text(max_size=4),
        ),
        min_size=1,
        max_size=6,
    ).map("".join),
)
def test_pieces_of_injections_put_together_stay_inert(slot: str, text: str) -> None:
    limit = SLOTS[slot][1]
    if clean(text, limit, SPECIAL):
        check_is_inert(shown(slot, text), limit + len("Drama, "))


@pytest.mark.parametrize("name", ["plain order", "order in German", "jinja", "format strings", "sql"])
def test_what_only_reads_like_an_order_is_shown_as_it_is(name: str) -> None:
    text = INJECTIONS[name]
    assert shown("title in a history", text) == text


def test_halves_of_a_token_in_neighbouring_titles_do_not_meet() -> None:
    titles = [HistoryLine("<|im", 3.0), HistoryLine("start|> x", 3.0)]
    assert find_template_token(WRITER.user_summary(titles), SPECIAL) is None


def test_an_article_that_moves_does_not_close_a_token() -> None:
    title = "<|" + "a" * 55 + ", The (|>)"
    assert find_template_token(WRITER.item_facts(title), SPECIAL) is None


IDS = st.uuids().map(str)


@given(IDS, IDS, st.sampled_from(["id", "uid", "USER", "email", "device_id", "user_id", "item_id", "session"]))
def test_ids_and_columns_that_are_not_named_never_show(user: str, item: str, column: str) -> None:
    row = {"user_id": user, column: user, "job": "nurse"}
    item_row = {"item_id": item, column: item, "user_id": user, "genres": ["Drama"]}
    prompts = [
        WRITER.user_summary(PLAIN, row, previous="Likes noir."),
        WRITER.user_shift("Likes noir.", "Likes farce."),
        WRITER.item_facts("Nine Lamps", item_row),
        *(WRITER.group(kind, ["Nine Lamps"], 3) for kind in (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS)),
    ]
    assert not any(user in prompt or item in prompt for prompt in prompts)
    assert "occupation nurse" in prompts[0]
    named = PromptWriter(SCENARIO.model_copy(update={"user_fields": {"device": "device"}}))
    assert user in named.user_summary(PLAIN, {"device": user, "user_id": item})
