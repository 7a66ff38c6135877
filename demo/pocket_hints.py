"""Hints that make the pocket LLM learn in minutes: two linear heads, trained beside it and then thrown away.

A list's answer holds ten small decisions in seventy tokens, too few to find out both what each title means and how to
count. So the embedding of a title must also show the movie's attributes to the first head, and the state behind each
listed title must show the second head what the list up to there says by the rule, and the state behind each sentence
of two summaries what is new so far (deep supervision, Lee et al., arXiv 1409.5185). Neither head sees or changes an
answer.
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, rms_norm

from demo.catalogue import Movie
from demo.group_lessons import common_steps
from demo.lessons import SUMMARY_FACTORS, VALUES, Lesson, preference_steps, values_of
from demo.shift_lessons import shift_steps

# Layer whose output shows the counting; the layers after it put it into words.
COUNTING_LAYER = 3
# The binary loss is a mean over some fifty values, most of them trivially absent.
ATTRIBUTE_WEIGHT = 5.0
_NO_MOVIE = -1
_IGNORED = -100


class Hints(nn.Module):
    """The two heads and what they should say."""

    def __init__(self, tokenizer: Tokenizer, movies: Sequence[Movie], hidden_size: int, vocabulary: int) -> None:
        super().__init__()
        self.movie_of_token = torch.full((vocabulary,), _NO_MOVIE)
        for number, movie in enumerate(movies):
            self.movie_of_token[tokenizer.encode(f'"{movie.title}"').ids[-1]] = number
        self._stop = tokenizer.encode(".").ids[0]
        names = [(factor, value) for factor, values in VALUES.items() for value in values]
        self.attributes = torch.tensor(
            [[float(value in values_of(movie, factor)) for factor, value in names] for movie in movies]
        )
        # Per factor: each value, and none. Last, whether a sentence is new.
        self._sizes = [*[len(VALUES[factor]) + 1 for factor in SUMMARY_FACTORS] * 2, 2]
        self.attribute_head = nn.Linear(hidden_size, len(names))
        self.counting_head = nn.Linear(hidden_size, sum(self._sizes))

    def targets(self, ids: Tensor, lessons: Sequence[Lesson]) -> Tensor:
        """[b, t, 11] what is shown up to each title or sentence, liked then disliked per factor; ignored elsewhere.

        Of a group, what is common stands where the liked is. Of two summaries, see `shift_steps`.
        """
        targets = torch.full((*ids.shape, len(self._sizes)), _IGNORED)
        for row, lesson in enumerate(lessons):
            # The prompt's titles come before the answer's; a rating or a separator is the token after its title.
            titles = (self.movie_of_token[ids[row]] != _NO_MOVIE).nonzero()[:, 0] + 1
            if lesson.history:
                targets[row, titles[: len(lesson.history)], :-1] = torch.from_numpy(preference_steps(lesson.history))
            elif lesson.group:
                steps = torch.from_numpy(common_steps(lesson.group))
                targets[row, titles[: len(steps)], : steps.shape[1]] = steps
            elif lesson.summaries:
                steps = torch.from_numpy(shift_steps(*lesson.summaries))
                # The answer ends with sentences too.
                told = lesson.answer.count(".")
                ends = (ids[row] == self._stop).nonzero()[:, 0]
                targets[row, ends[-told - len(steps) : -told]] = steps
        return targets

    def loss(self, ids: Tensor, targets: Tensor, states: Sequence[Tensor]) -> Tensor:
        """How badly the heads do; `states` are the embeddings [b, t, d] and each layer's output."""
        movies = self.movie_of_token[ids]
        titles = movies != _NO_MOVIE
        width = states[0].shape[-1:]
        # A sum of none, where a batch has nothing to show.
        loss = states[0].new_zeros((), dtype=torch.float32)
        if titles.any():
            shown = self.attribute_head(rms_norm(states[0][titles].float(), width)).float()
            loss = loss + ATTRIBUTE_WEIGHT * binary_cross_entropy_with_logits(shown, self.attributes[movies[titles]])
        told = (targets != _IGNORED).any(dim=-1)
        if told.any():
            counted = self.counting_head(rms_norm(states[COUNTING_LAYER][told].float(), width)).float()
            pairs = zip(counted.split(self._sizes, dim=-1), targets[told].unbind(-1), strict=True)
            losses = [cross_entropy(said, wanted) for said, wanted in pairs if (wanted != _IGNORED).any()]
            loss = loss + torch.stack(losses).mean()
        return loss
