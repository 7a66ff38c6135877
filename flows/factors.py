"""The `factors` verb: the LLM proposes a domain's words and factors from a sample of the catalogue; people edit."""

from pathlib import Path
from zlib import crc32

import orjson

from augment.engine.base import Request
from augment.scope import Scope
from flows import stages
from flows.config import Config
from flows.grouping import catalogue
from flows.run import closing_run
from prompts.factors import elicitation_prompt, parse_factors, parse_words, scenario_toml
from warehouse.errors import InputError, UsageError
from warehouse.keys import digest
from warehouse.store import replacing

# A table of more columns than this says more about its database than about its items.
_MOST_FIELDS = 8


def propose_factors(config: Config, out: Path, noun: str | None, count: int, sample: int) -> dict[str, object]:
    """Write a scenario file to `out` from the LLM's answer about a sample of the catalogue; what it proposed.

    The answer is no knowledge and is not stored. Raises UsageError when `out` exists, InputError without a catalogue,
    and NoFactors when the answer holds none.
    """
    if out.exists():
        raise UsageError(f"{out} exists already and was left as it is. Name another file, or remove it.")
    with closing_run(config, Scope()) as run, run.writing("lorestream factors"):
        stages.ingest(run)
        items = catalogue(run)
        if not items.num_rows:
            raise InputError(
                "The catalogue has no item yet, so there is nothing to find factors for. Check [inputs.items]."
            )
        rows = sorted(items.to_pylist(), key=lambda row: (crc32(row["item_id"].encode()), row["item_id"]))[:sample]
        shown = [(row["title"], orjson.loads(row["attributes"])) for row in rows]
        prompt = elicitation_prompt(shown, noun, count, run.special_tokens)
        [answer] = run.engine.generate([Request(digest(prompt), prompt)])
        factors, words = parse_factors(answer.text, count), parse_words(answer.text)
    fields = dict.fromkeys(name for _title, attributes in shown for name in attributes)
    labels = {name: name.replace("_", " ").capitalize() for name in list(fields)[:_MOST_FIELDS]}
    one = words.noun or noun or "item"
    many = words.noun_plural or f"{one}s"
    text = scenario_toml(out.stem, one, many, words.consumed or "chose", factors, labels)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return {
        "scenario": str(out),
        "factors": factors,
        "noun": one,
        "noun_plural": many,
        "next": f"Read and edit {out}, then name it in [prompts] scenario.",
    }
