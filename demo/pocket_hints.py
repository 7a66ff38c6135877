"""Hints that make the pocket LLM learn in minutes: two linear heads, trained beside it and then thrown away.

A list's answer holds ten small decisions in seventy tokens, too few to find out both what each title means and how to
count. So the embedding of a title must also show the movie's attributes to the first head, and the state behind each
listed rating must show the second head what the list up to there says by the rule (deep supervision, Lee et al.,
arXiv 1409.5185). Neither head sees or changes an answer.
"""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, rms_norm

from demo.catalogue import Movie
from demo.lessons import SUMMARY_FACTORS, VALUES, Lesson, preference_steps, values_of

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
        names = [(factor, value) for factor, values in VALUES.items() for value in values]
        self.attributes = torch.tensor(
            [[float(value in values_of(movie, factor)) for factor, value in names] for movie in movies]
        )
        # Per factor: each value, and none.
        self._sizes = [len(VALUES[factor]) + 1 for factor in SUMMARY_FACTORS] * 2
        self.attribute_head = nn.Linear(hidden_size, len(names))
        self.counting_head = nn.Linear(hidden_size, sum(self._sizes))

    def targets(self, ids: Tensor, lessons: Sequence[Lesson]) -> Tensor:
        """[b, t, 10] what the list shows up to each rating, liked then disliked per factor; ignored elsewhere."""
        targets = torch.full((*ids.shape, len(self._sizes)), _IGNORED)
        for row, lesson in enumerate(lessons):
            if lesson.history:
                # The prompt's titles come before the answer's; a rating is the token after its title.
                places = (self.movie_of_token[ids[row]] != _NO_MOVIE).nonzero()[: len(lesson.history), 0] + 1
                targets[row, places] = torch.from_numpy(preference_steps(lesson.history))
        return targets

    def loss(self, ids: Tensor, targets: Tensor, states: Sequence[Tensor]) -> Tensor:
        """How badly the heads do; `states` are the embeddings [b, t, d] and each layer's output."""
        movies = self.movie_of_token[ids]
        titles = movies != _NO_MOVIE
        width = states[0].shape[-1:]
        shown = self.attribute_head(rms_norm(states[0][titles].float(), width))
        loss = ATTRIBUTE_WEIGHT * binary_cross_entropy_with_logits(shown.float(), self.attributes[movies[titles]])
        rated = targets[..., 0] != _IGNORED
        if rated.any():
            counted = self.counting_head(rms_norm(states[COUNTING_LAYER][rated].float(), width)).float()
            pairs = zip(counted.split(self._sizes, dim=-1), targets[rated].unbind(-1), strict=True)
            loss = loss + sum(cross_entropy(said, wanted) for said, wanted in pairs) / len(self._sizes)
        return loss
