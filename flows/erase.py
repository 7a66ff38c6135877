"""The `erase` verb: users or items removed from the warehouse for good, and what that cannot reach.

No Prefect flow, unlike the other verbs that write: a flow's parameters are stored in Prefect's own database, and an id
there would outlive the erasure.
"""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence

from augment.scope import Scope
from flows import grouping
from flows.config import Config
from flows.run import closing_run, utc_now
from flows.writing import writing
from warehouse.erase import IdColumns, erase, survey_erasure
from warehouse.errors import UsageError
from warehouse.ledger import existing_ledger
from warehouse.sources import InputsConfig
from warehouse.traces import Subjects

log = logging.getLogger("lorestream")

FROM_STANDARD_INPUT = "-"

# Said in every report: where the ids, prompts or texts may be beside the warehouse.
OUT_OF_REACH = (
    "your input files: their rows are left out from now on, remove them there yourself",
    "batch files, exports and copies of tables that you wrote elsewhere, and backups of the warehouse",
    "of a store: versions that the bucket keeps of removed objects, other working copies until their next command that "
    "writes (or `lorestream sync`), and the caches of readers until they open it again",
    "Prefect's database (PREFECT_HOME): it holds no prompt and no text, but messages of failed runs may quote a "
    "rejected row; delete such flow runs there",
    'logs of an LLM server that answered the prompts (engine.backend = "openai")',
    "scratch folders lorestream-* of killed runs in TMPDIR, and the shell's history of this command",
)


def erase_entities(
    config: Config,
    users: Sequence[str],
    items: Sequence[str],
    *,
    rebuild_groups: bool = False,
    dry_run: bool = False,
    wait_s: float = 0.0,
) -> dict[str, object]:
    """The report of one erasure, or with `dry_run` what it would find, nothing written.

    `-` among the ids stands for those on standard input, one a line. With `rebuild_groups` everybody who is left is
    clustered anew, where there are groups. Raises UsageError without an id, WarehouseNotFound, WriterBusy.
    """
    subjects = Subjects(frozenset(_ids(users)), frozenset(_ids(items)))
    if not subjects.users | subjects.items:
        raise UsageError("Nobody was named. Give --user ID or --item ID, or - for ids on standard input, one a line.")
    columns = _id_columns(config.inputs)
    if dry_run:
        existing_ledger(config.root)
        found = {"dry_run": True, **survey_erasure(config.root, subjects, columns).counts()}
    else:
        with writing(config, "lorestream erase", wait_s) as copy:
            settle = {} if copy is None else {"settle": copy.settle}
            found = erase(config.root, subjects, columns, utc_now, **settle)
        if rebuild_groups:
            found["groups_rebuilt"] = _rebuild_groups(config, wait_s)
    notes = _notes(found, rebuild_groups)
    others = Subjects(users=subjects.items, items=subjects.users)
    if not found["rows"] and survey_erasure(config.root, others, columns).counts()["rows"]:
        notes.append(f"{'items' if subjects.users else 'users'} are called so, and they were left as they are")
    return {**found, "notes": notes, "out_of_reach": list(OUT_OF_REACH)}


def _ids(given: Iterable[str]) -> Iterator[str]:
    for value in given:
        if value == FROM_STANDARD_INPUT:
            yield from (line for line in sys.stdin.read().splitlines() if line)
        elif value:
            yield value


def _id_columns(inputs: InputsConfig) -> IdColumns:
    """What ids are called in the contract and in the inputs."""
    tables = [source.columns for source in (inputs.behaviours, inputs.items, inputs.users) if source is not None]
    return IdColumns(
        user={"user_id", *(columns["user_id"] for columns in tables if "user_id" in columns)},
        item={"item_id", *(columns["item_id"] for columns in tables if "item_id" in columns)},
    )


def _rebuild_groups(config: Config, wait_s: float) -> int | None:
    """The number of the new generation; None where there were no groups."""
    with closing_run(config, Scope()) as run, run.writing("lorestream erase", wait_s):
        newest = grouping.newest_generation(run)
        if not newest:
            return None
        grouping.cluster(run, newest + 1)
        return newest + 1


def _notes(found: dict[str, object], rebuild_groups: bool) -> list[str]:
    notes = []
    if not found["rows"]:
        notes.append("nothing was found under these ids; they are barred from now on" if not found.get("dry_run") else
                     "nothing was found under these ids")  # fmt: skip
    if found["marked_groups"] and not rebuild_groups:
        notes.append(
            "texts of the marked groups were asked for while they were members; --rebuild-groups clusters without them"
        )
    if found["marked_adapters"]:
        notes.append("the marked adapters may have learned from them; `lorestream train` fits another")
    if found["asked_anew"]:
        notes.append(f"{found['asked_anew']} prompts of others showed an erased title: the next run asks them anew")
    if found["input_paths_that_name_them"]:
        notes.append(
            f"{found['input_paths_that_name_them']} input files are called after one of these ids, and the ledger "
            "keeps names of input files"
        )
    return notes
