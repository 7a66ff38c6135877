"""Repetition measures against counting every n-gram."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.quality.repetition import DUPLICATE, FREQUENT, repeated_ngrams, repetition
from augment.quality.words import split_words

WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "lamp"]), max_size=40)


def naive_repetition(words: list[str], min_count: int) -> dict[str, float]:
    """The measures of a line of words, by marking every character of every n-gram."""
    total = max(sum(map(len, words)), 1)

    def share(marked: set[int]) -> float:
        return sum(len(words[place]) for place in marked) / total

    measures = {}
    for n in FREQUENT + DUPLICATE:
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n in FREQUENT:
            covers = [
                {place for start, gram in enumerate(grams) if gram == wanted for place in range(start, start + n)}
                for wanted, count in counts.items()
                if count >= min_count
            ]
            measures[f"frequent_{n}gram_share"] = max(map(share, covers), default=0.0)
        else:
            again = {
                place for start, gram in enumerate(grams) if gram in grams[:start] for place in range(start, start + n)
            }
            measures[f"duplicate_{n}gram_share"] = share(again)
    return measures


@given(WORDS, st.integers(2, 5))
def test_ngram_shares_equal_those_of_counting_every_ngram(words: list[str], min_count: int) -> None:
    found = repetition(" ".join(words), min_count)
    for name, value in naive_repetition(words, min_count).items():
        assert found[name] == pytest.approx(value), name


@given(WORDS)
def test_repeated_ngrams_are_all_that_stand_twice(words: list[str]) -> None:
    found = {
        tuple(words[place : place + n]): places
        for n, groups in repeated_ngrams(words, 10)
        for places in groups
        for place in places[:1]
    }
    for n in range(1, 11):
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        for gram, count in Counter(grams).items():
            assert found.get(gram, []) == ([i for i, other in enumerate(grams) if other == gram] if count > 1 else [])


@given(st.lists(st.sampled_from(["one line", "another", "One  line", "---", ""]), max_size=12))
def test_duplicate_lines_equal_those_of_counting(lines: list[str]) -> None:
    filled = [" ".join(line.lower().split()) for line in lines if line.strip("- ")]
    again = [line for place, line in enumerate(filled) if line in filled[:place]]
    found = repetition("\n".join(lines), 4)
    assert found["duplicate_line_share"] == pytest.approx(len(again) / max(len(filled), 1))
    assert found["duplicate_line_char_share"] == pytest.approx(sum(map(len, again)) / max(sum(map(len, filled)), 1))


def test_a_text_said_twice_scores_one_half() -> None:
    text = "The quiet lamp burns in the harbour while the sailors sleep and nobody counts the waves"
    found = repetition(f"{text}. {text}.", 4)
    assert found["duplicate_5gram_share"] == found["duplicate_10gram_share"] == 0.5
    assert repetition(f"{text}\n\n{text}", 4)["duplicate_paragraph_share"] == 0.5


def test_a_phrase_said_twice_in_a_short_text_is_not_frequent() -> None:
    assert repetition("The preferred theme is revenge. The preferred mood is gloomy.", 4)["frequent_2gram_share"] == 0


def test_a_quoted_title_may_be_named_in_every_sentence() -> None:
    sentences = [
        f'In "The Very Long Night of the Lamp" {what}.'
        for what in ("a sailor sleeps", "two thieves dance", "nobody wins", "rain falls", "all is lost", "dogs bark")
    ]
    quoted = " ".join(sentences)
    assert repetition(quoted, 4)["duplicate_5gram_share"] == 0
    assert repetition(quoted.replace('"', ""), 4)["duplicate_5gram_share"] > 0.4


def test_chinese_ngrams_are_counted_in_pairs_of_characters() -> None:
    text = "\u8fd9\u90e8\u7535\u5f71\u8bb2\u8ff0\u4e86\u4e00\u4e2a\u5173\u4e8e\u7231\u60c5\u7684\u6545\u4e8b\u3002"
    assert len(split_words(text)) == 16
    found = repetition(text * 2, 4)
    assert found["duplicate_8gram_share"] == pytest.approx(0.5)
    # Sixteen characters repeat; eighteen (n = 9) do not.
    assert found["duplicate_9gram_share"] == 0
