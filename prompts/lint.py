"""What is wrong with a scenario before a single call is paid for: words of another domain, fields that do not exist.

The released REKI prompts call books movies and describe movies by the factors of books; the answers say so. The shipped
scenarios are the measure: each knows its own nouns and the words (`marks`) that are at home in no other of them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from prompts.scenario import SHIPPED, Scenario, load_scenario
from warehouse.errors import ConfigError

# A factor is a phrase that fits into a list of nine; more is an instruction, which belongs into a template.
_MAX_FACTOR_CHARS = 60
# Plurals that are no singular with an s.
_INVARIANT = {"news", "series"}
# Words that say nothing about a domain.
_SMALL = {"a", "an", "and", "as", "by", "for", "in", "of", "on", "or", "the", "to", "with"}


@dataclass(frozen=True)
class _Domain:
    """A shipped scenario as the lint compares with it; words are stems."""

    name: str
    nouns: frozenset[str]
    marks: frozenset[str]
    factors: frozenset[str]
    words: frozenset[str]


def lint(scenario: Scenario, columns: Collection[str], user_columns: Collection[str] = ()) -> list[str]:
    """The scenario's faults in words, each with what to do; none for a sound one.

    `columns` and `user_columns` are the attribute columns that the catalogue's and the users' tables have.
    """
    return [
        *_faulty_texts(scenario),
        *_faulty_factors(scenario),
        *_foreign_words(scenario),
        *_missing_columns(scenario, "item_fields", scenario.item_fields, columns, "the catalogue"),
        *_missing_columns(scenario, "user_fields", scenario.user_fields, user_columns, "the users' table"),
    ]


def check_scenario(scenario: Scenario, columns: Collection[str], user_columns: Collection[str], source: str) -> None:
    """Raise ConfigError naming all that `lint` finds; `source` says which scenario it is."""
    faults = lint(scenario, columns, user_columns)
    if faults:
        raise ConfigError(f"No prompt is made with {source}: {' '.join(faults)}")


def doubt(scenario: Scenario, columns: Collection[str]) -> str | None:
    """That of fields which may be absent all are, where another shipped scenario has some: `movies` for a shop, say.

    Not a fault: a shop may have only a `year`.
    """
    if not scenario.optional_fields or not columns or set(scenario.item_fields) & set(columns):
        return None
    known = {name: sorted(set(load_scenario(name).item_fields) & set(columns)) for name in SHIPPED}
    best = max(SHIPPED, key=lambda name: len(known[name]))
    if not known[best]:
        return None
    return (
        f"The catalogue has {_quoted(columns)}, and none of the fields of the scenario `{scenario.name}` "
        f"({', '.join(scenario.item_fields)}); `{best}` has {_quoted(known[best])}. If the items are no "
        f'{scenario.noun_plural}, set [prompts] scenario = "{best}", or write your own'
    )


def _faulty_texts(scenario: Scenario) -> Iterator[str]:
    unit = {"value.singular": scenario.value.singular, "value.plural": scenario.value.plural} if scenario.value else {}
    texts = {
        "noun": scenario.noun,
        "noun_plural": scenario.noun_plural,
        "consumed": scenario.consumed,
        **unit,
        **{f"item_fields.{column}": label for column, label in scenario.item_fields.items()},
        **{f"user_fields.{column}": label for column, label in scenario.user_fields.items()},
        **{f"user_factors[{i}]": factor for i, factor in enumerate(scenario.user_factors)},
        **{f"item_factors[{i}]": factor for i, factor in enumerate(scenario.item_factors)},
    }
    for where, text in texts.items():
        if not text.strip():
            yield f"`{where}` is empty. Write a word, or take the entry out."
        elif not text.isprintable():
            yield f"`{where}` is {text!r}, which is not one printable line. Write it as one line."
    if "title" in scenario.item_fields:
        yield "`item_fields` names `title`, which every prompt shows anyway. Take it out."
    for name, fields in (("item_fields", scenario.item_fields), ("user_fields", scenario.user_fields)):
        # A file for many catalogues may give one label to the two spellings of a column.
        labels = [] if scenario.optional_fields else list(fields.values())
        for label in _repeated(labels):
            yield f"`{name}` gives the label {label!r} to several columns. Name each differently."


def _faulty_factors(scenario: Scenario) -> Iterator[str]:
    for name, factors in (("user_factors", scenario.user_factors), ("item_factors", scenario.item_factors)):
        for factor in _repeated(factors):
            yield f"`{name}` names {factor!r} twice. Keep one."
        for factor in factors:
            if "," in factor or ";" in factor:
                yield f"`{name}` has {factor!r}: in a list it reads as several factors. Split it, or write `and`."
            if len(factor) > _MAX_FACTOR_CHARS:
                yield (
                    f"`{name}` has a factor of {len(factor)} characters, {factor[:_MAX_FACTOR_CHARS]!r}...: a factor "
                    f"is a phrase of at most {_MAX_FACTOR_CHARS}. Shorten it."
                )
    users, items = (set().union(*map(_stems, side)) for side in (scenario.user_factors, scenario.item_factors))
    if users and items and not users & items:
        yield (
            f"`user_factors` ({', '.join(scenario.user_factors)}) and `item_factors` "
            f"({', '.join(scenario.item_factors)}) share no word, so what is known of a user could not meet what is "
            "known of an item. Describe both sides by the same factors."
        )


def _foreign_words(scenario: Scenario) -> Iterator[str]:
    domains = _domains()
    for unknown in sorted(set(scenario.kin) - set(domains)):
        yield f"`kin` names {unknown!r}, which is no shipped scenario ({', '.join(domains)}). Name one of these."
    one, many = _named_by(scenario.noun), _named_by(scenario.noun_plural)
    if one and many and not one & many:
        yield (
            f"`noun` {scenario.noun!r} is of {_listed(one)}, `noun_plural` {scenario.noun_plural!r} of "
            f"{_listed(many)}. Make them the singular and the plural of one word."
        )
    home = one | many
    at_home = [domains[name] for name in sorted({*home, *scenario.kin} & set(domains))]
    for domain in domains.values():
        if domain in at_home:
            continue
        foreign = domain.marks.difference(*(d.words for d in at_home))
        if home:
            nouns = domain.nouns.difference(*(d.nouns | d.words for d in at_home))
            yield from _foreign(scenario, domain, {"consumed": [scenario.consumed]}, foreign | nouns, home)
        # Of a domain that no shipped scenario is about, only a list taken over from one of them is surely wrong.
        lists = {"user_factors": scenario.user_factors, "item_factors": scenario.item_factors}
        suspect = {name: side for name, side in lists.items() if home or _taken_over(side, domain)}
        yield from _foreign(scenario, domain, suspect, foreign, home)


def _foreign(
    scenario: Scenario,
    domain: _Domain,
    texts: Mapping[str, Sequence[str]],
    words: frozenset[str],
    home: Collection[str],
) -> Iterator[str]:
    for name, phrases in texts.items():
        found = [phrase for phrase in phrases if _stems(phrase) & words]
        if found:
            belong = f"belong to {_listed(home)}" if home else "are something else"
            yield (
                f"`{name}` has {', '.join(map(repr, found))}, at home in `{domain.name}`, but {scenario.noun_plural} "
                f"{belong}. Write the words of your own domain (`lorestream factors` proposes some), or allow those "
                f'of `{domain.name}` with kin = ["{domain.name}"].'
            )


def _missing_columns(
    scenario: Scenario, name: str, fields: Mapping[str, str], columns: Collection[str], table: str
) -> Iterator[str]:
    if scenario.optional_fields:
        return
    for column in fields:
        if column in columns:
            continue
        close = get_close_matches(column, sorted(columns), 1)
        meant = f" Did you mean `{close[0]}`?" if close else ""
        yield (
            f"`{name}` names the column `{column}`, which {table} does not have; it has "
            f"{', '.join(f'`{c}`' for c in sorted(columns)) or 'no attributes'}.{meant} Correct it, or take it out."
        )


@cache
def _domains() -> dict[str, _Domain]:
    found = {}
    for name in SHIPPED:
        scenario = load_scenario(name)
        factors = {*scenario.user_factors, *scenario.item_factors}
        marks = set().union(*map(_stems, scenario.marks))
        found[name] = _Domain(
            name=name,
            nouns=frozenset().union(*map(_stems, (scenario.noun, scenario.noun_plural, *scenario.also_called))),
            marks=frozenset(marks),
            factors=frozenset(map(_folded, factors)),
            words=frozenset(marks.union(*map(_stems, factors), _stems(scenario.consumed))),
        )
    return found


def _named_by(noun: str) -> set[str]:
    """The shipped domains that a noun speaks of: `audio book` of books, `recipe` of none."""
    return {name for name, domain in _domains().items() if _stems(noun) & domain.nouns}


def _taken_over(factors: Sequence[str], domain: _Domain) -> bool:
    """Whether more than half of the factors are, to the letter, a shipped domain's."""
    return 2 * len({_folded(factor) for factor in factors} & domain.factors) > len(factors)


def _stems(text: str) -> set[str]:
    """Its words in lower case, without plural s and small words."""
    words = {word for word in re.findall(r"[^\W\d_]+", text.casefold()) if word not in _SMALL}
    return {w[:-1] if len(w) > 3 and w.endswith("s") and w not in _INVARIANT else w for w in words}


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _repeated(texts: Sequence[str]) -> list[str]:
    """Those that stand more than once, letter case and blanks apart, as first written."""
    first: dict[str, str] = {}
    found: dict[str, str] = {}
    for text in texts:
        key = _folded(text)
        if key in first:
            found[key] = first[key]
        first.setdefault(key, text)
    return list(found.values())


def _quoted(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _listed(names: Collection[str]) -> str:
    return " and ".join(f"`{name}`" for name in sorted(names))
