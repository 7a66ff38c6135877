"""Languages told by stop words and scripts."""

import pytest

from augment.quality.language import known_languages, leading, profile, stop_words
from augment.quality.words import split_words

TEXTS = {
    "en": "The film is about a thief who has to leave the town that he loves, and it was praised for its music.",
    "de": "Der Film handelt von einem Dieb, der die Stadt verlassen muss, die er liebt, und wurde f\u00fcr die Musik"
    " gelobt.",
    "fr": "Le film est l'histoire d'un voleur qui doit quitter la ville et les gens, et il est connu pour sa musique.",
    "es": "La pel\u00edcula es la historia de un ladr\u00f3n que tiene que dejar la ciudad y es conocida por su"
    " m\u00fasica en el puerto.",
    "it": "Il film \u00e8 la storia di un ladro che deve lasciare la citt\u00e0 e non \u00e8 stato molto amato dal"
    " pubblico, ma anche lodato.",
    "pt": "O filme \u00e9 a hist\u00f3ria de um ladr\u00e3o que n\u00e3o quer deixar a cidade e foi muito elogiado"
    " pela m\u00fasica e por seu final.",
    "nl": "De film gaat over een dief die de stad moet verlaten en het is niet de eerste keer dat hij dat doet met"
    " zijn hond.",
    "pl": "Film jest o z\u0142odzieju, kt\u00f3ry nie chce si\u0119 przenie\u015b\u0107 do miasta, ale to jest tylko"
    " pocz\u0105tek i nie tak smutny.",
    "ru": "\u042d\u0442\u043e\u0442 \u0444\u0438\u043b\u044c\u043c \u043e \u0432\u043e\u0440\u0435 \u0438 \u043e"
    " \u0433\u043e\u0440\u043e\u0434\u0435",
    "zh": "\u8fd9\u90e8\u7535\u5f71\u8bb2\u8ff0\u4e86\u4e00\u4e2a\u5c0f\u5077\u7684\u6545\u4e8b",
    "ja": "\u3053\u306e\u6620\u753b\u306f\u6ce5\u68d2\u306e\u7269\u8a9e\u3067\u3042\u308b",
    "ko": "\uc774 \uc601\ud654\ub294 \ub3c4\ub451\uc5d0 \ub300\ud55c \uc774\uc57c\uae30\uc774\ub2e4",
}


def told(text: str) -> str | None:
    return leading(profile(split_words(text)), 0.15, 1.5)


@pytest.mark.parametrize("language", TEXTS)
def test_running_text_is_told_by_its_language(language: str) -> None:
    assert told(TEXTS[language]) == language


@pytest.mark.parametrize("text", ["", "comedy drama thriller", "1999 2000 2001", "Quiet Lamp 3"])
def test_a_text_without_stop_words_has_no_language(text: str) -> None:
    assert told(text) is None


def test_a_text_in_two_languages_has_none() -> None:
    assert told(f"{TEXTS['en']} {TEXTS['de']}") is None


def test_every_language_can_be_known_and_its_words_stand_once() -> None:
    assert set(TEXTS) <= set(known_languages())
    assert all(word == word.casefold() and " " not in word for words in stop_words().values() for word in words)
