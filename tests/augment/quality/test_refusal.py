"""Refusals: phrases of every language, sentences that hold them, and the ways in which phrases are written."""

import re

import pytest

from augment.quality.refusal import Phrases, hedging, load_phrases, phrase_sources
from augment.quality.words import split_sentences, split_words

REFUSALS = {
    "en": "I'm sorry, but I cannot provide specific details about this film. Please provide more information.",
    "de": "Leider kann ich dazu nichts sagen. Bitte nennen Sie mir weitere Titel.",
    "fr": "Je suis d\u00e9sol\u00e9, je ne peux pas r\u00e9pondre. Veuillez fournir plus de titres.",
    "es": "Lo siento, no puedo determinar el g\u00e9nero. Por favor, proporcione m\u00e1s datos.",
    "zh": "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u63d0\u4f9b\u8fd9\u90e8\u7535\u5f71\u7684\u4fe1\u606f\u3002",
}
HEDGES = {
    "en": [
        "The length cannot be determined from the titles alone.",
        "Without further information, it is challenging to assess the quality.",
        "The authors are not specified in the list.",
        "The time period is unknown.",
        "One title is not enough to determine any details about the genre.",
        "These are actually books, not movies.",
        "There seems to be some confusion between movies and books.",
    ],
    "de": ["Ohne weitere Informationen ist der Stil schwer zu bestimmen.", "Der Zeitraum ist nicht angegeben."],
    "fr": ["Il est difficile de d\u00e9terminer le style.", "L'auteur n'est pas pr\u00e9cis\u00e9."],
    "es": ["Es dif\u00edcil determinar el estilo.", "No se menciona el autor."],
    "zh": ["\u65e0\u6cd5\u786e\u5b9a\u5199\u4f5c\u98ce\u683c\u3002", "\u4f5c\u8005\u4fe1\u606f\u4e0d\u8db3\u3002"],
}
SOUND = {
    "en": "A thief is unable to forget the unknown woman he met. Critics found it hard to watch, but worth it.",
    "de": "Ein Dieb trifft in Hamburg eine Fremde. Die Kritik lobte die Musik und die ruhige Kamera.",
    "fr": "Un voleur rencontre une inconnue \u00e0 Lyon. La critique a salu\u00e9 la musique et la lumi\u00e8re.",
    "es": "Un ladr\u00f3n conoce a una desconocida en Lima. La cr\u00edtica elogi\u00f3 la m\u00fasica y la luz.",
    "zh": "\u4e00\u4e2a\u5c0f\u5077\u5728\u6e2f\u53e3\u9047\u89c1\u4e86\u4e00\u4f4d\u964c\u751f\u4eba\u3002"
    "\u5f71\u8bc4\u4eba\u79f0\u8d5e\u4e86\u97f3\u4e50\u3002",
}


def measures(text: str) -> dict[str, float]:
    return hedging(split_sentences(text))


@pytest.mark.parametrize("language", REFUSALS)
def test_a_refusal_is_found_in_its_language(language: str) -> None:
    found = measures(REFUSALS[language])
    assert found["hedged_share"] == 1
    assert found["opens_with_refusal"] == 1


@pytest.mark.parametrize(("language", "sentence"), [(name, s) for name, listed in HEDGES.items() for s in listed])
def test_a_hedge_is_found_in_its_language(language: str, sentence: str) -> None:
    assert measures(sentence) == {"hedged_share": 1, "vague_share": 0, "opens_with_refusal": 0}, language


@pytest.mark.parametrize("language", SOUND)
def test_a_sound_text_hedges_in_no_language(language: str) -> None:
    assert measures(SOUND[language]) == {"hedged_share": 0, "vague_share": 0, "opens_with_refusal": 0}


def test_a_hedge_weighs_as_much_as_its_sentence() -> None:
    found = measures("A thief meets a stranger in a harbour town. The length is unknown.")
    assert found["hedged_share"] == pytest.approx(4 / 13)


def test_an_excuse_before_a_good_answer_is_no_refusal() -> None:
    found = measures("As an AI, let me begin with the plot. It is a crime novel set in Glasgow.")
    assert found["opens_with_refusal"] == 0
    assert found["hedged_share"] == pytest.approx(9 / 17)


def test_a_refusal_late_in_the_text_does_not_open_it() -> None:
    text = "It is a crime novel. It is set in Glasgow. It won a prize. I cannot provide its length."
    assert measures(text)["opens_with_refusal"] == 0
    assert measures(" ".join(reversed(split_after_stops(text))))["opens_with_refusal"] == 1


def split_after_stops(text: str) -> list[str]:
    return re.findall(r"[^.]+\.", text)


@pytest.mark.parametrize(
    ("sentence", "vague"),
    [
        ("The settings of these books can vary greatly.", True),
        ("The settings vary, including Glasgow and a farm in Peru.", False),
        ("Some may be short, while others may be long.", True),
    ],
)
def test_a_sentence_is_vague_where_things_vary_and_nothing_is_named(sentence: str, vague: bool) -> None:
    assert measures(sentence)["vague_share"] == vague


@pytest.mark.parametrize(
    ("phrase", "words", "found"),
    [
        ("cannot be (determined|known)", "it cannot be known", True),
        ("cannot be (determined|known)", "it cannot be denied", False),
        ("not (explicitly|) stated", "not stated", True),
        ("not (explicitly|) stated", "not explicitly stated here", True),
        ("not (explicitly|) stated", "not really stated", False),
        ("without ... information", "without any more of this information", True),
        ("without ... information", "without one two three four five information", False),
        ("(as|) an ai", "an ai", True),
        ("stated", "understated", False),
        ("\u65e0\u6cd5 (\u786e\u5b9a|\u5224\u65ad)", "\u6211\u65e0\u6cd5\u5224\u65ad", True),
    ],
)
def test_a_phrase_matches_whole_words_as_it_is_written(phrase: str, words: str, found: bool) -> None:
    assert Phrases({"x": [phrase]}).classes(split_words(words)) == ({"x"} if found else set())


@pytest.mark.parametrize("phrase", ["... information", "", "as(an|a) model", "a (b|c)d"])
def test_a_phrase_that_cannot_be_read_is_refused(phrase: str) -> None:
    with pytest.raises(ValueError, match="the phrase"):
        Phrases({"x": [phrase]})


def test_every_shipped_phrase_finds_the_words_it_is_made_of() -> None:
    phrases = load_phrases()
    sources = list(phrase_sources())
    assert {language for language, _, _ in sources} >= {"en", "de", "fr", "es", "zh"}
    for language, name, listed in sources:
        for source in listed:
            for pick in (0, -1):
                alternatives = re.findall(r"\([^()]*\)|\S+", source.replace("...", ""))
                words = split_words(" ".join(part.strip("()").split("|")[pick] for part in alternatives))
                # With nothing for every optional part, a phrase may be left with less than any of its classes asks for.
                assert not words or name in phrases.classes(words), (language, name, source)
