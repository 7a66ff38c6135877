"""The gate: every rule on both sides of its threshold, precedence, and what must pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from augment.quality.config import QualityConfig
from augment.quality.gate import QualityGate, Verdict
from augment.quality.status import Status
from demo.catalogue import make_catalogue
from demo.lessons import item_lesson, summary_lesson
from prompts.render import HistoryLine, Kind, PromptWriter
from prompts.scenario import load_scenario

SCENARIO = load_scenario("movies")
WRITER = PromptWriter(SCENARIO)
FACTORS = {str(Kind.USER_SUMMARY): SCENARIO.user_factors, str(Kind.ITEM_FACTS): SCENARIO.item_factors}
PROMPT = WRITER.item_facts("Quiet Lamp, The (1999)", {"genres": ["drama"]})
NAMES = ("Quiet Lamp, The (1999)", "Two Thieves (2001)")
GOOD = (
    "The Quiet Lamp is a slow drama from 1999, directed by Ilse Marrow with a cast of stage actors. "
    "It is set in a harbour town in Iceland. A retired detective looks for the man who sold his lamp, and finds that "
    "his own sister did. Critics praised the calm tone, and the piano of the soundtrack won a prize."
)
HEDGE = "The length of it cannot be determined without more information."
LOOP = "The lamp burns and the lamp burns again. "
GERMAN = (
    "Der Film handelt von einem Detektiv, der in einer Stadt am Meer nach dem Mann sucht, der seine Lampe verkauft "
    "hat, und der am Ende erkennt, dass es die eigene Schwester war. Die Kritik lobte die Musik und den ruhigen Ton."
)


def judge(text: str, finish_reason: str = "stop", prompt: str = PROMPT, **config: object) -> Verdict:
    gate = QualityGate(QualityConfig.model_validate(config), FACTORS, NAMES, ("[MY_TOKEN]",))
    return gate.judge(str(Kind.ITEM_FACTS), prompt, text, finish_reason)


def test_a_good_answer_is_ok_and_has_no_reason() -> None:
    verdict = judge(GOOD)
    assert (verdict.status, verdict.reason) == (Status.OK, None)
    assert verdict.measures["factor_share"] > 0.7


@pytest.mark.parametrize(
    "text", ["An answer of 812 characters about Quiet Lamp 3.", "Likes lamps.", "The user has no clear preference."]
)
def test_a_short_answer_is_no_fault(text: str) -> None:
    assert judge(text).status == Status.OK


def test_the_pocket_llms_answers_pass() -> None:
    movies = make_catalogue()
    gate = QualityGate(QualityConfig(), FACTORS, [movie.title for movie in movies])
    for movie in movies[:60]:
        for brief in (True, False):
            lesson = item_lesson(WRITER, movie, brief)
            assert gate.judge(Kind.ITEM_FACTS, lesson.prompt, lesson.answer, "stop").reason is None
    for start in range(40):
        history = [(movie, 1 + (start + n) % 5) for n, movie in enumerate(movies[start : start + 12])]
        lesson = summary_lesson(WRITER, history, brief=True)
        assert gate.judge(Kind.USER_SUMMARY, lesson.prompt, lesson.answer, "stop").reason is None


@pytest.mark.parametrize("text", ["", "  \n", "...", "\u200b", "Unknown."])
def test_less_than_two_words_is_empty(text: str) -> None:
    verdict = judge(text)
    assert verdict.status == Status.EMPTY
    assert "quality.min_words = 2" in str(verdict.reason)


def test_a_text_as_long_as_a_chapter_is_no_answer() -> None:
    chapter = " ".join(f"Scene {n} shows door {n * n}." for n in range(1001))
    verdict = judge(chapter)
    assert (verdict.status, verdict.reason) == (
        Status.OFF_TOPIC,
        "words is 5005, above quality.max_words = 5000.",
    )
    assert judge(chapter, max_words=6000).measures["words"] == 5005


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", Status.OK),
        ("length", Status.TRUNCATED),
        ("abort", Status.TRUNCATED),
        ("content_filter", Status.REFUSED),
    ],
)
def test_an_unfinished_answer_is_not_ok(reason: str, status: Status) -> None:
    assert judge(GOOD, reason).status == status


def test_a_loop_is_repetitive() -> None:
    verdict = judge(LOOP * 20)
    assert verdict.status == Status.REPETITIVE
    assert judge(GOOD + LOOP).status == Status.OK


@pytest.mark.parametrize(
    ("setting", "measure"),
    [
        ("max_duplicate_line_share", "duplicate_line_share"),
        ("max_duplicate_line_char_share", "duplicate_line_char_share"),
        ("max_duplicate_paragraph_share", "duplicate_paragraph_share"),
        ("max_duplicate_paragraph_char_share", "duplicate_paragraph_char_share"),
    ],
)
def test_each_limit_of_duplicates_is_kept_by_itself(setting: str, measure: str) -> None:
    text = "A calm film about a lamp.\n\nA calm film about a lamp.\n\n" + GOOD
    wide = {f"max_duplicate_{unit}{share}_share": 1 for unit in ("line", "paragraph") for share in ("", "_char")}
    value = judge(text).measures[measure]
    assert 0 < value < 0.5
    assert judge(text, **{**wide, setting: value}).status == Status.OK
    below = judge(text, **{**wide, setting: value - 0.01})
    assert below.status == Status.REPETITIVE
    assert f"quality.{setting}" in str(below.reason)


@pytest.mark.parametrize("place", range(9))
def test_each_limit_of_ngrams_is_kept_by_itself(place: int) -> None:
    sizes = [*((f"frequent_{n}gram_share", "max_frequent_ngram_share") for n in (2, 3, 4))]
    sizes += [(f"duplicate_{n}gram_share", "max_duplicate_ngram_share") for n in range(5, 11)]
    measure, setting = sizes[place]
    text = GOOD + " and the lamp burns again on the dark side of the harbour" * 4
    value = judge(text, max_frequent_ngram_share=(1, 1, 1), max_duplicate_ngram_share=(1,) * 6).measures[measure]
    assert value > 0

    def limits(limit: float) -> dict[str, object]:
        both = {"max_frequent_ngram_share": [1.0] * 3, "max_duplicate_ngram_share": [1.0] * 6}
        both[setting][place if place < 3 else place - 3] = limit
        return {name: tuple(listed) for name, listed in both.items()}

    assert judge(text, **limits(value)).status == Status.OK
    below = judge(text, **limits(value - 0.01))
    assert below.status == Status.REPETITIVE
    assert str(below.reason).startswith(measure)


def test_an_answer_that_mostly_hedges_is_refused_and_one_hedge_is_not() -> None:
    assert judge(f"{GOOD} {HEDGE}").status == Status.OK
    verdict = judge(f"It is a drama set in a harbour town. {HEDGE} {HEDGE.replace('length', 'style')}")
    assert verdict.status == Status.REFUSED
    assert "evasive_share is 0." in str(verdict.reason)
    assert "quality.max_evasive_share = 0.5" in str(verdict.reason)


def test_vague_sentences_count_half() -> None:
    text = "The plots of these films can vary greatly. They are set in a harbour and in a town."
    measures = judge(text).measures
    assert measures["evasive_share"] == pytest.approx(8 / 18 / 2)


def test_a_refusal_in_the_opening_weighs_more() -> None:
    refusal = "I cannot provide specific details about this film."
    verdict = judge(f"{refusal} {GOOD[:230]}")
    assert verdict.status == Status.REFUSED
    assert "max_evasive_share_after_refusal" in str(verdict.reason)
    assert judge(f"{GOOD[:230]} {refusal}").status == Status.OK


def test_the_prompt_in_the_answer_is_a_leak() -> None:
    assert judge(PROMPT).status == Status.LEAKED_PROMPT
    unfenced = PROMPT.replace("<item>", "").replace("</item>", "")
    echo = f"{unfenced}\n{GOOD}"
    verdict = judge(echo, prompt=unfenced)
    assert verdict.status == Status.LEAKED_PROMPT
    assert "echoed_share" in str(verdict.reason)
    assert judge(echo, prompt=unfenced, max_echoed_share=1).status == Status.OK
    assert judge(echo, prompt=unfenced, echo_min_words=1000).status == Status.OK


def test_an_answer_that_is_mostly_the_question_is_a_leak() -> None:
    question = "Introduce this movie to somebody who does not know it"
    short = f"{question}. It is a calm drama."
    assert judge(short).measures["copied_share"] == pytest.approx(10 / 15)
    assert judge(short).status == Status.LEAKED_PROMPT
    assert judge(short, max_copied_share=10 / 15).status == Status.OK
    assert judge(f"{question}. {GOOD}").status == Status.OK


TITLES = [f"The Quiet Lamp of Street {n}" for n in range(12)]
PROMPTS = {
    Kind.USER_SUMMARY: WRITER.user_summary([HistoryLine(title, 4.0) for title in TITLES]),
    Kind.USER_SHIFT: WRITER.user_shift(GOOD, GOOD.replace("calm", "grim")),
    Kind.ITEM_FACTS: PROMPT,
    **{kind: WRITER.group(kind, TITLES, 40) for kind in Kind if kind.startswith("group")},
}


@pytest.mark.parametrize("kind", Kind)
def test_a_parrot_is_found_for_every_kind_with_and_without_the_fences(kind: Kind) -> None:
    gate = QualityGate(QualityConfig(), FACTORS)
    prompt = PROMPTS[kind]
    bare = prompt.replace("<", "").replace(">", "")
    for parrot in (prompt, f"Sure! {prompt}", bare):
        assert gate.judge(kind, prompt, parrot, "stop").status == Status.LEAKED_PROMPT


def test_what_the_prompt_shows_as_data_may_come_back() -> None:
    prompt = WRITER.user_shift(GOOD, GOOD.replace("calm", "grim"))
    gate = QualityGate(QualityConfig(), {})
    assert gate.judge(Kind.USER_SHIFT, prompt, GOOD, "stop").status == Status.OK
    assert gate.judge(Kind.USER_SHIFT, prompt, prompt, "stop").status == Status.LEAKED_PROMPT


@pytest.mark.parametrize("token", ["<|im_end|>", "[MY_TOKEN]", "</item>", "\uff1c|im_start|\uff1e"])
def test_a_leaked_token_is_named(token: str) -> None:
    verdict = judge(GOOD + token)
    assert verdict.status == Status.LEAKED_PROMPT
    assert "token is" in str(verdict.reason)


def test_an_answer_about_something_else_is_off_topic() -> None:
    text = (
        "My neighbour grows tomatoes behind a low wall. Every morning he waters each plant by hand, pulls weeds, and "
        "talks with his cat. In August I get a basket, which I carry home under my coat, for it always rains then."
    )
    verdict = judge(text)
    assert verdict.status == Status.OFF_TOPIC
    assert "factor_share" in str(verdict.reason)
    assert judge(text, min_factor_share=0).status == Status.OK
    assert judge(text[:110]).status == Status.OK


def test_an_answer_in_another_language_is_off_topic() -> None:
    verdict = judge(GERMAN)
    assert verdict.status == Status.OFF_TOPIC
    assert str(verdict.reason) == "language is 'de', not 'en' (quality.language)."
    assert judge(GERMAN, language=None).status == judge(GERMAN, language="any").status == Status.OK
    assert judge(GERMAN, language="de").status == Status.OK
    assert judge(GOOD, language="de").status == Status.OFF_TOPIC


def test_a_german_catalogue_asked_about_in_english_is_answered_in_english() -> None:
    prompt = WRITER.item_facts(
        "Die Lampe und der Hafen und das Meer", {"genres": ["Drama \u00fcber das Leben mit der See und den Menschen"]}
    )
    answer = f'"Die Lampe und der Hafen und das Meer" is a quiet film. {GOOD}'
    assert judge(answer, prompt=prompt).status == Status.OK


def test_quoted_titles_of_another_language_do_not_count() -> None:
    titles = ", ".join(f'"Der Mann und das Meer und die Stadt {n}"' for n in range(12))
    text = f"It is set in a harbour town, as these are: {titles}. {GOOD[:120]}"
    assert judge(text, max_ungrounded_title_share=1).status == Status.OK


def test_data_of_another_language_does_not_change_what_was_asked() -> None:
    prompt = PROMPT.replace("Genres: drama", f"Description: {GERMAN} {GERMAN}")
    assert judge(GOOD, prompt=prompt).status == Status.OK
    assert judge(GERMAN, prompt=prompt).status == Status.OFF_TOPIC


def test_a_few_words_have_no_language() -> None:
    text = "Der Film ist ruhig und die Musik von einem Klavier."
    assert judge(text).status == Status.OK
    assert judge(text, language_min_words=10).status == Status.OFF_TOPIC
    assert judge(text, language_min_words=11).status == Status.OK


def test_a_prompt_of_no_known_language_asks_for_none() -> None:
    assert judge(GERMAN, prompt="").status == Status.OK
    assert judge(GERMAN, prompt="Quiet Lamp?").status == Status.OK


def test_titles_that_nobody_knows_are_off_topic_only_where_they_are_nearly_all() -> None:
    unknown = [f'"Nightfall {n}"' for n in range(5)]
    verdict = judge(f"{GOOD} See also {', '.join(unknown)}.")
    assert verdict.status == Status.OFF_TOPIC
    assert "ungrounded_title_share is 1.00" in str(verdict.reason)
    assert judge(f"{GOOD} See also {', '.join(unknown[:4])}.").status == Status.OK
    known = '"Two Thieves" and "The Quiet Lamp"'
    assert judge(f"{GOOD} See also {', '.join(unknown)}, {known}.").status == Status.OK


def test_titles_are_not_judged_without_a_catalogue() -> None:
    gate = QualityGate(QualityConfig(), FACTORS)
    text = f"{GOOD} See also " + ", ".join(f'"Nightfall {n}"' for n in range(9))
    assert gate.judge(Kind.ITEM_FACTS, PROMPT, text, "stop").status == Status.OK


def test_precedence_names_the_fault_to_mend_first() -> None:
    """Faults are taken away one by one; each time the next of the documented order stands."""
    refusing = f"{HEDGE} The author is not mentioned."
    loop = f"{HEDGE} " * 12
    assert judge("", "length").status == Status.EMPTY
    assert judge(f"{loop}<|im_end|>", "length").status == Status.LEAKED_PROMPT
    assert judge(loop, "length").status == Status.REPETITIVE
    assert judge(refusing, "length").status == Status.REFUSED
    assert judge(GERMAN, "length").status == Status.TRUNCATED
    assert judge(GERMAN).status == Status.OFF_TOPIC


def test_switched_off_it_keeps_back_only_what_is_empty_or_cut() -> None:
    assert judge(" ", enabled=False).status == Status.EMPTY
    assert judge("word " * 50, "length", enabled=False).status == Status.TRUNCATED
    for text in (PROMPT, LOOP * 20, HEDGE, GERMAN, "Unknown."):
        assert judge(text, enabled=False).status == Status.OK


def test_retryable_statuses_are_those_of_the_config() -> None:
    def retried(**config: object) -> set[Status]:
        gate = QualityGate(QualityConfig.model_validate(config), FACTORS)
        return {status for status in Status if gate.retryable(status)}

    assert retried() == set(Status) - {Status.OK, Status.TRUNCATED}
    assert retried(retryable=["refused"]) == {Status.REFUSED}
    assert retried(retry=False) == retried(enabled=False) == set()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"retryable": ["ok"]}, "leave out ok"),
        ({"language": "tlh"}, "en, "),
        ({"max_copied_share": 1.2}, "less than or equal to 1"),
        ({"max_duplicate_ngram_share": [0.5]}, "max_duplicate_ngram_share"),
        ({"max_repeats": 3}, "Extra inputs"),
    ],
)
def test_a_config_that_means_nothing_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QualityConfig.model_validate(config)


PIECES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from(
            [GOOD, HEDGE, LOOP, '"', "\u201c", "<", "<item>", "</item>", "\n\n", ". ", "\u7535\u5f71", "(", "..."]
        ),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=60)
@given(PIECES, PIECES, st.sampled_from(["stop", "length", "content_filter", ""]))
def test_any_text_gets_the_same_verdict_twice_and_shares_are_shares(prompt: str, text: str, finish: str) -> None:
    verdict = judge(text, finish, prompt=prompt)
    assert verdict == judge(text, finish, prompt=prompt)
    assert (verdict.reason is None) == (verdict.status == Status.OK)
    shares = {name: value for name, value in verdict.measures.items() if name.endswith("_share")}
    assert all(0 <= value <= 1 for value in shares.values()), shares


@pytest.mark.parametrize(
    "text",
    ["." * 200_000 + "x", '"' * 100_000, "word " * 50_000, "A" * 200_000, "<" * 100_000, "(" * 100_000, " A" * 50_000],
)
def test_a_huge_text_is_judged_in_linear_time(text: str) -> None:
    """Quadratic time would be hours."""
    assert judge(text, prompt=text[:1000]).status in Status


def test_a_prompt_of_history_lines_is_judged_by_its_own_factors() -> None:
    prompt = WRITER.user_summary([HistoryLine("Two Thieves (2001)", 5.0)])
    gate = QualityGate(QualityConfig(), {"user_summary": ("robots",)})
    assert gate.judge("user_summary", prompt, GOOD, "stop").measures["factor_share"] == 0
    assert gate.judge("item_facts", prompt, GOOD, "stop").measures["factor_share"] == 1
