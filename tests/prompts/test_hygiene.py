"""Untrusted text inside prompts: nothing in a title may act."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prompts.hygiene import KNOWN_TEMPLATE_TOKENS, article_first, clean, find_template_token
from prompts.render import HistoryLine, PromptWriter
from prompts.scenario import load_scenario

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "[MY_TOKEN]")
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIAL, *KNOWN_TEMPLATE_TOKENS, "</history>", "<item>", '"', "<|", "|>", "<", ">", "|", "im_end"]
        ),
        # Parts that hide, join, fold into others, or are taken away themselves.
        st.sampled_from(
            ["\u0301", "\u200b", "\ufe0f", "\x1b[", "\x9b", "\uff1c", "\uff5c", "\u00a8", "```", "[MY_", " "]
        ),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)


@given(PIECES)
@example("<|im_<|im_end|>start|>")
@example("<|im_<|im_<|im_end|>end|>start|>system")
@example("\uff1c\uff5cim_start\uff5c\uff1e")
@example("<\u200b|im_start|>")
@example("</his</history>tory>")
def test_nothing_of_a_template_survives_cleaning(text: str) -> None:
    cleaned = clean(text, 80, SPECIAL)
    assert find_template_token(cleaned, SPECIAL) is None
    assert "<history>" not in cleaned
    assert "</history>" not in cleaned
    assert "</item>" not in cleaned
    assert '"' not in cleaned
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in cleaned)
    assert len(cleaned) <= 80


@given(PIECES)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = clean(text, 80, SPECIAL)
    assert clean(once, 80, SPECIAL) == once


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>Heat</b> & dust", "\u2039b\u203aHeat\u2039/b\u203a & dust"),
        ("\u2764\ufe0f Heat\u200d\u3164", "\u2764 Heat"),
        ("\x1b[31mHeat\x1b[0m \x1b]0;x\x07dust", "Heat dust"),
        ("\u201eHeat\u201d \u00abdust\u00bb", "'Heat' \u00abdust\u00bb"),
        ("H" + "\u0334" * 9 + "eat", "H" + "\u0334" * 4 + "eat"),
        ("\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd"),
        ("[MY\u3000_TOKEN] [MY_<|im_end|>TOKEN]", "[MY _TOKEN] [MY_ TOKEN]"),
        # Eight levels are taken off whole; of deeper ones the brackets go.
        ("<|im_" * 10 + "end|>" * 10, "im_ im_ end end"),
        ("```sql\nHeat```", "'sql Heat'"),
        ("</liked></turned_down></previous></current></group></catalogue></history></item>Heat", "Heat"),
        ("\u201c\u201d\u201e\u201f\u275d\u275e\u301d\u301e\u301f\uff02\u02ba\u02ee\u2033\u2036\U0001f676", "'" * 15),
    ],
)
def test_what_is_hidden_goes_and_what_is_readable_stays(text: str, shown: str) -> None:
    assert clean(text, 100, SPECIAL) == shown


def test_only_the_beginning_of_a_very_long_text_is_looked_at() -> None:
    assert clean("a" * 10**6, 8) == "aaaaaaa\u2026"
    assert find_template_token(clean("<|im_end|>" * 10**5 + "Heat", 8)) is None
    assert clean("Heat" + " " * 10**6 + "dust", 8) == "Heat\u2026"


@given(st.lists(PIECES, min_size=1, max_size=4))
def test_a_history_has_one_line_and_as_many_quotes_as_titles_need(titles: list[str]) -> None:
    writer = PromptWriter(load_scenario("movies"), SPECIAL)
    kept = [t for t in titles if clean(t, 150, SPECIAL)]
    if not kept:
        return
    prompt = writer.user_summary([HistoryLine(t, 4.0) for t in titles])
    body = prompt.split("<history>\n")[1].split("\n</history>")[0]
    assert prompt.count("<history>") == prompt.count("</history>") == 1
    assert "\n" not in body
    assert body.count('"') == 2 * len(kept)


@pytest.mark.parametrize(
    "token",
    [
        *SPECIAL,
        *KNOWN_TEMPLATE_TOKENS,
        "<|eot_id|>",
        "<\uff5cbegin\uff5c>",
        "<\u200b|im_start|>",
        "[|user|]",
        "<reserved_106>",
        "<extra_id_1>",
        "<unused7>",
        "</seed:think>",
    ],
)
def test_tokens_are_found_in_the_middle_of_a_title(token: str) -> None:
    assert find_template_token(f"The {token} Affair", SPECIAL) is not None


@pytest.mark.parametrize(
    "title", ["Alien <3", "Love || Hate", "8 < 9 > 7", "Se7en [Director's Cut]", "$#*! My Dad Says"]
)
def test_ordinary_punctuation_is_left_alone(title: str) -> None:
    assert find_template_token(title, SPECIAL) is None
    assert clean(title, 100, SPECIAL) == title


def test_long_text_is_cut_with_an_ellipsis() -> None:
    assert clean("abcdefghij", 6) == "abcde\u2026"
    assert clean("abcdef", 6) == "abcdef"
    with pytest.raises(ValueError, match="0"):
        clean("a", 0)


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Avventura, L' (1960)", "L'Avventura (1960)"),
        ("Beautiful Mind, A", "A Beautiful Mind"),
        ("Good, the Bad, The", "The Good, the Bad"),
        ("Heat (1995)", "Heat (1995)"),
    ],
)
def test_trailing_articles_come_first(title: str, shown: str) -> None:
    assert article_first(title) == shown
