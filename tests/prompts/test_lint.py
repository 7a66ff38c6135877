"""The lint: each fault is named with its value and a remedy, and sound scenarios of one's own pass."""

import pytest

from prompts.lint import check_scenario, doubt, lint
from prompts.scenario import Scenario, ValueUnit, load_scenario
from warehouse.errors import ConfigError

BOOKS = load_scenario("books").model_copy(update={"optional_fields": False, "item_fields": {"author": "Author"}})
COLUMNS = ["author", "pages", "year"]


def faults(**changes: object) -> list[str]:
    return lint(BOOKS.model_copy(update=changes), COLUMNS, ["age"])


def only(**changes: object) -> str:
    found = faults(**changes)
    assert len(found) == 1, found
    return found[0]


def of_a_domain(noun: str, factors: tuple[str, ...], **more: object) -> list[str]:
    fields = {"name": "own", "noun": noun, "noun_plural": f"{noun}s", "consumed": "used"}
    return lint(Scenario.model_validate({**fields, "user_factors": factors, "item_factors": factors, **more}), [], [])


def test_a_sound_scenario_has_no_faults() -> None:
    assert faults() == []
    check_scenario(BOOKS, COLUMNS, ["age"], "books.toml")


@pytest.mark.parametrize("factor", ["soundtrack", "director and cast", "Directors", "vocals", "brand", "journalist"])
def test_a_factor_of_another_domain_is_refused(factor: str) -> None:
    fault = only(user_factors=(*BOOKS.user_factors, factor))
    assert "`user_factors`" in fault
    assert repr(factor) in fault
    assert "but books belong to `books`" in fault
    assert "kin = [" in fault


@pytest.mark.parametrize("factor", ["plot and characters", "mood and tone", "pacing", "price", "illustrations"])
def test_a_factor_that_fits_several_domains_is_allowed(factor: str) -> None:
    assert faults(user_factors=(*BOOKS.user_factors, factor)) == []


def test_kin_allows_the_words_of_another_domain() -> None:
    lists = {side: (*getattr(BOOKS, side), "soundtrack") for side in ("user_factors", "item_factors")}
    assert len(faults(**lists)) == 2
    assert faults(**lists, kin=("movies",)) == []
    assert "'films'" in only(kin=("films",))


def test_the_published_mistakes_are_refused() -> None:
    movies = load_scenario("movies")
    books_called_movies = faults(noun="movie", noun_plural="movies")
    assert any("'author'" in fault and "movies belong to `movies`" in fault for fault in books_called_movies)
    movie_factors = faults(user_factors=movies.user_factors, item_factors=movies.item_factors)
    assert {"user_factors", "item_factors"} == {fault.split("`")[1] for fault in movie_factors}


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"consumed": "watched and rated"}, "'watched and rated'"),
        ({"consumed": "rated as movies"}, "'rated as movies'"),
        ({"noun_plural": "movies"}, "'movies'"),
    ],
)
def test_words_of_another_domain_are_refused(changes: dict[str, object], value: str) -> None:
    assert any(value in fault for fault in faults(**changes))


def test_a_domain_of_ones_own_may_use_any_factor_but_not_a_list_taken_over() -> None:
    assert of_a_domain("recipe", ("cuisine", "ingredients", "time to cook")) == []
    assert of_a_domain("podcast", ("topic", "host", "production quality", "soundtrack")) == []
    taken = of_a_domain("podcast", load_scenario("movies").user_factors)
    assert len(taken) == 2
    assert "'soundtrack'" in taken[0]
    assert "podcasts are something else" in taken[0]
    assert of_a_domain("podcast", load_scenario("movies").user_factors, kin=["movies"]) == []


@pytest.mark.parametrize("noun", ["novel", "audio book", "Book"])
def test_other_names_of_a_domain_are_known(noun: str) -> None:
    assert of_a_domain(noun, ("genre", "author")) == []
    assert "belong to `books`" in of_a_domain(noun, ("genre", "director"))[0]


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    fault = only(item_fields={"autor": "Author"})
    assert "`autor`" in fault
    assert "Did you mean `author`?" in fault
    assert "`pages`" in fault
    fault = only(user_fields={"zip": "postcode"})
    assert "`user_fields` names the column `zip`" in fault
    assert "it has `age`" in fault
    assert "no attributes" in lint(BOOKS, [], [])[0]


def test_a_catalogue_that_only_another_scenario_knows_is_doubted() -> None:
    kettles = {"brand", "category", "price"}
    said = doubt(load_scenario("movies"), kettles)
    assert said is not None
    assert said.startswith(
        "The catalogue has `brand`, `category`, `price`, and none of the fields of the scenario `movies`"
    )
    assert 'scenario = "shop"' in said
    for name, columns in (("shop", kettles), ("movies", {"genres"}), ("movies", set()), ("movies", {"wattage"})):
        assert doubt(load_scenario(name), columns) is None
    # A file of one's own that names a column is right about it.
    assert doubt(load_scenario("movies").model_copy(update={"item_fields": {"price": "Price"}}), kettles) is None


def test_optional_fields_may_be_absent() -> None:
    assert faults(item_fields={"autor": "Author"}, optional_fields=True) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"noun": " "}, "`noun` is empty"),
        ({"consumed": "read\nand rated"}, "'read\\nand rated'"),
        ({"value": ValueUnit(singular="star", plural="")}, "`value.plural` is empty"),
        ({"item_fields": {"author": ""}}, "`item_fields.author` is empty"),
        ({"item_fields": {"title": "Title"}}, "shows anyway"),
        ({"item_fields": {"author": "By", "year": "by"}}, "label 'By' to several"),
        ({"user_factors": ("genre", "author", "Genre ")}, "names 'genre' twice"),
        ({"user_factors": ("genre", "")}, "`user_factors[1]` is empty"),
        ({"user_factors": ("genre", "style, pace")}, "'style, pace'"),
        ({"user_factors": ("genre", "x" * 61)}, "61 characters"),
        ({"item_factors": ("weight", "colour")}, "share no word"),
    ],
)
def test_texts_that_cannot_stand_in_a_prompt_are_named(changes: dict[str, object], says: str) -> None:
    assert any(says in fault for fault in faults(**changes))


def test_all_faults_come_in_one_error() -> None:
    bad = BOOKS.model_copy(update={"consumed": "watched", "item_fields": {"autor": "Author"}})
    with pytest.raises(ConfigError, match=r"my\.toml: .*'watched'.*`autor`"):
        check_scenario(bad, COLUMNS, [], "my.toml")
