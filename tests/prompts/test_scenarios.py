"""The shipped scenarios: each speaks of its own domain only, and both sides of it can meet."""

import re

import pytest

from prompts.lint import lint
from prompts.render import HistoryLine, Kind, PromptWriter
from prompts.scenario import SHIPPED, Scenario, load_scenario, parse_scenario
from warehouse.errors import ConfigError

NOUNS = {
    "movies": ("movie", "movies"),
    "books": ("book", "books"),
    "music": ("song", "songs"),
    "news": ("news article", "news articles"),
    "shop": ("product", "products"),
}


def prompts(name: str) -> dict[Kind, str]:
    writer = PromptWriter(load_scenario(name))
    titles = ["Nine Lamps", "Salt Roads"]
    return {
        Kind.USER_SUMMARY: writer.user_summary([HistoryLine(t, 4.0) for t in titles], previous="Likes lamps."),
        Kind.USER_SHIFT: writer.user_shift("Likes lamps.", "Likes roads."),
        Kind.ITEM_FACTS: writer.item_facts(titles[0]),
        **{k: writer.group(k, titles, 9) for k in (Kind.GROUP_LIKES, Kind.GROUP_DISLIKES, Kind.GROUP_ITEMS)},
    }


def test_five_domains_are_shipped() -> None:
    assert set(SHIPPED) == set(NOUNS)
    for name in SHIPPED:
        scenario = load_scenario(name)
        assert scenario.name == name
        assert (scenario.noun, scenario.noun_plural) == NOUNS[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_prompt_speaks_of_its_own_domain(name: str) -> None:
    """The released REKI prompts call books movies and ask about movies by the factors of books."""
    scenario = load_scenario(name)
    for kind, prompt in prompts(name).items():
        assert any(re.search(rf"\b{noun}\b", prompt) for noun in NOUNS[name]), kind
        for other in set(SHIPPED) - {name}:
            assert not any(re.search(rf"\b{noun}\b", prompt) for noun in NOUNS[other]), (kind, other)
        about_items = kind in (Kind.ITEM_FACTS, Kind.GROUP_ITEMS)
        factors = scenario.item_factors if about_items else scenario.user_factors
        assert f": {', '.join(factors)}." in prompt, kind


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scenarios_pass_the_lint_whatever_the_catalogue_has(name: str) -> None:
    assert lint(load_scenario(name), [], []) == []
    assert lint(load_scenario(name), ["genres", "x"], ["age"]) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_sides_are_aligned_and_no_user_attribute_is_shown_by_default(name: str) -> None:
    scenario = load_scenario(name)
    assert len(scenario.user_factors) == len(scenario.item_factors) == 9
    if name != "movies":  # KAR's two lists for movies differ in two places.
        assert scenario.user_factors == scenario.item_factors
    assert scenario.user_fields == {}


@pytest.mark.parametrize("column", ["user_id", "USER_ID", " User_Id "])
@pytest.mark.parametrize("table", ["user_fields", "item_fields"])
def test_a_scenario_that_shows_user_ids_is_refused(table: str, column: str) -> None:
    text = 'name="x"\nnoun="y"\nnoun_plural="ys"\nconsumed="z"\nuser_factors=["a"]\nitem_factors=["a"]\n'
    assert isinstance(parse_scenario(text, "mine.toml"), Scenario)
    with pytest.raises(ConfigError, match=rf"mine\.toml.*{table}.*no user id"):
        parse_scenario(f'{text}[{table}]\n"{column}" = "user"\n', "mine.toml")


def test_what_only_the_lint_reads_makes_no_new_prompt_version() -> None:
    movies = load_scenario("movies")
    quiet = movies.model_copy(update={"optional_fields": False, "marks": (), "also_called": (), "kin": ("books",)})
    louder = movies.model_copy(update={"max_title_chars": 80})
    for kind in Kind:
        assert PromptWriter(quiet).version(kind) == PromptWriter(movies).version(kind)
        assert PromptWriter(louder).version(kind) != PromptWriter(movies).version(kind)
