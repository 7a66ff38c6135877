"""How the pocket LLM takes up further kinds of prompt: tokens for their constant parts, and embeddings to begin with.

The tokens that a model already has keep their numbers, and old prompts are encoded as before.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from demo.catalogue import Movie
from demo.group_lessons import GROUP_KINDS, group_lesson
from demo.lessons import SUMMARY_FACTORS, item_lesson, random_history, summary_lesson
from demo.pocket_tokenizer import chat
from demo.shift_lessons import random_span, shift_lesson
from prompts.render import PromptWriter
from prompts.timespan import coverage

# What differs between prompts beside what they are about: lists of titles, and numbers.
_VARYING = re.compile(r'"[^"\n]+"(?: \(\d stars?\))?(?:; "[^"\n]+"(?: \(\d stars?\))?)*|\d+')
# Enough for every month and unit of time, alone and beside each other.
_TIMES = 3000
# A shorter part is no gain.
_MIN_CHARS = 4
# What separates the titles of a group, where a list has ratings.
_SEPARATOR, _RATINGS = ";", ('"A" (4 stars); ', '"A" (5 stars); ')


def repertoire_constants(writer: PromptWriter, movies: Sequence[Movie], base: Tokenizer) -> list[str]:
    """The constant parts of the prompts that are new since the third stage, sorted; those of the time among them.

    Left out is what `base`, the tokenizer so far, finds elsewhere too: lessons that it knows are encoded as before.
    """
    # Where a constant part holds another, the longer is found.
    longer = [token.content for token in base.get_added_tokens_decoder().values()]
    text = re.sub("|".join(map(re.escape, longer)), "\n", "".join(old_texts(writer, movies)))
    parts = {part for prompt in _samples(writer, movies) for part in _VARYING.split(prompt)}
    # The line break after a list stands for itself, as it does in the older prompts.
    parts = {part.removeprefix("\n") for part in parts}
    return sorted(
        p for p in parts if len(p) >= _MIN_CHARS and re.search("[a-z]", p) and p not in longer and p not in text
    )


def old_texts(writer: PromptWriter, movies: Sequence[Movie]) -> list[str]:
    """Lessons of the first three stages that hold each of their words."""
    rng = np.random.default_rng(0)
    lessons = [item_lesson(writer, movie, brief) for movie in movies for brief in (False, True)]
    lists = [random_history(movies, 30, rng) for _ in range(300)]
    lessons += [summary_lesson(writer, history, brief) for history in lists for brief in (False, True)]
    return ["".join(chat(lesson)) for lesson in lessons]


def _samples(writer: PromptWriter, movies: Sequence[Movie]) -> Iterator[str]:
    """What is new in prompts: one of each new wording with its data cut out, and many sentences about time."""
    for kind in GROUP_KINDS:
        for size in (1, 2):
            yield group_lesson(writer, kind, movies[:1], size).prompt
    rng = np.random.default_rng(0)
    nothing = dict.fromkeys(SUMMARY_FACTORS)
    span = random_span(rng)
    summary = summary_lesson(writer, [(movies[0], 5)], span=span).prompt.split("\n")
    shift = shift_lesson(writer, nothing, nothing, span).prompt.split("\n")
    # The first line, the time, the fence; for a shift also what stands between the summaries and after them.
    yield from (f"{summary[0]}\n", f"{summary[2]}\n")
    yield from (f"{shift[0]}\n{shift[2]}\n", f"{shift[0]}\n", f"{shift[2]}\n")
    yield from ("\n".join(shift[4:6]) + "\n", "\n".join(shift[7:]))
    for line in (summary[1], shift[1]):
        subject = re.split(" covers | is from ", line)[0]
        for _ in range(_TIMES):
            span = random_span(rng)
            yield coverage(subject, span.opened_at, span.sealed_at, span.previous_end)


def extend_tokenizer(tokenizer: Tokenizer, constants: Sequence[str]) -> None:
    """Give each constant the next free token."""
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in constants])


def grown_embedding(old: Tensor, rows: int, base: Tokenizer, extended: Tokenizer) -> Tensor:
    """[rows, d]: the embedding `old` of `base` with rows for the tokens that only `extended` has.

    A new token begins as the mean of the tokens that its text was before. Three exceptions spare the model finding
    anew what it knows: what begins or ends a list of titles begins as the token that did so in the lists of ratings,
    and what separates titles as good ratings.
    """
    grown = torch.zeros(rows, old.shape[1], dtype=torch.float32)
    grown[: len(old)] = old.float()
    first = base.get_vocab_size()
    head, tail = _list_tokens(base)
    for number in range(first, extended.get_vocab_size()):
        text = extended.decode([number], skip_special_tokens=False)
        if text.endswith(("<group>\n", "<history>\n")) or base.decode([head]).startswith(text):
            like = [head]
        elif text.startswith("</group>"):
            like = [tail]
        else:
            like = base.encode(text).ids
        grown[number] = old[like].float().mean(dim=0)
    ratings = [base.encode(text).ids[-1] for text in _RATINGS]
    grown[base.encode(_SEPARATOR).ids[0]] = old[ratings].float().mean(dim=0)
    return grown


def _list_tokens(base: Tokenizer) -> tuple[int, int]:
    """The tokens that begin and end a list of ratings."""
    vocabulary = base.get_vocab()
    (head,) = (number for text, number in vocabulary.items() if text.endswith("<history>\n"))
    (tail,) = (number for text, number in vocabulary.items() if text.startswith("</history>\n"))
    return head, tail
