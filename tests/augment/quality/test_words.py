"""Words, sentences and quotations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.quality.words import instructions, name_keys, quoted, split_sentences, split_words, unquoted

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(TEXT)
def test_sentences_hold_all_words_in_order(text: str) -> None:
    assert [word for sentence in split_sentences(text) for word in sentence] == split_words(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don\u2019t stop, J.D.!", ["don't", "stop", "j", "d"]),
        ("snake_case 3.5", ["snake", "case", "3", "5"]),
        ("\u7535\u5f71 Film", ["\u7535", "\u5f71", "film"]),
        ("", []),
    ],
)
def test_words_are_letters_and_digits_in_lower_case(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_a_sentence_ends_at_a_stop_before_a_blank_and_at_a_line() -> None:
    assert split_sentences("It costs 3.5 (net.) Cheap!\nTrue") == [
        ["it", "costs", "3", "5", "net"],
        ["cheap"],
        ["true"],
    ]


def test_quotations_of_all_kinds_are_found_and_removed() -> None:
    text = 'A "b" \u201cc\u201d \u201ed\u201c \u00abe\u00bb \u300af\u300b g "h\ni" j'
    assert quoted(text) == ["b", "c", "d", "e", "f"]
    assert unquoted(text).split() == ["A", "g", '"h', 'i"', "j"]


def test_a_prompts_own_words_are_outside_its_fences() -> None:
    assert instructions('Say <item>\nTitle: "x"\n</item> this "y" <b> now').split() == ["Say", "this", "<b>", "now"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Matrix, The (1999)", {"the matrix", "the matrix 1999"}),
        ("Dune: Part Two", {"dune part two", "dune"}),
        ("...", set()),
    ],
)
def test_a_name_is_looked_up_in_all_its_forms(name: str, keys: set[str]) -> None:
    assert keys <= name_keys(name)
    assert bool(keys) == bool(name_keys(name))
