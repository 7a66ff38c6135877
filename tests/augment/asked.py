"""Prompts that the pocket LLM has something to say to: other prompts get one and the same short answer from it."""

from functools import cache
from random import Random

from demo.world import make_world
from prompts.render import HistoryLine, PromptOptions, PromptWriter
from prompts.scenario import load_scenario


@cache
def film_prompts(count: int, seed: int = 0) -> tuple[str, ...]:
    """Distinct prompts about lists of rated movies, each with an answer of its own of about forty tokens."""
    writer = PromptWriter(load_scenario("movies"), (), PromptOptions(show_time=False))
    titles = [movie.title for movie in make_world(small=True).movies]
    random = Random(seed)
    return tuple(
        writer.user_summary([HistoryLine(title, random.randint(1, 5)) for title in random.sample(titles, 6 + i % 5)])
        for i in range(count)
    )
