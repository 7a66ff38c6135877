"""The command line: `lorestream VERB`. Each verb prints what it will do, then calls a flow or a reader.

Exit codes: 0 done, 1 failed, 2 usage, configuration or input, 3 another writer holds the warehouse.
Results go to standard output (one JSON object with --json), everything else to standard error.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows.printing import hush_exit, print_result, results_only, write_result
from warehouse.errors import LorestreamError, UsageError

app = App(
    name="lorestream",
    help="LLM knowledge for existing CTR models: offline, point-in-time correct feature tables.",
    version=lambda: version("lorestream"),
    version_flags=["--version"],
    # `call` says what an interruption means for what is stored.
    suppress_keyboard_interrupt=False,
)
importer = App(name="import", help="Turn published data sets into input tables.")
app.command(importer)
pools = App(name="pool", help="The retrieval pools that drafts come from.")
app.command(pools)
groups = App(name="groups", help="Groups of users and items that share a call (knowledge.mode collective or mixed).")
app.command(groups)
requests = App(name="requests", help="Planned calls.")
app.command(requests)
snapshots = App(name="snapshots", help="The published snapshots, oldest first, and what retention keeps of them.")
app.command(snapshots)

ConfigPath = Annotated[Path, Parameter(name="--config", help="The configuration file.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Wait = Annotated[
    float, Parameter(validator=Number(gte=0), help="Seconds to wait for another writer before ending with 3.")
]
Ids = Annotated[
    tuple[str, ...],
    Parameter(allow_leading_hyphen=True, negative="", help="An id, repeatable; - for ids on standard input."),
]
FewerRows = Annotated[bool, Parameter(negative="", help="Publish although tables shrink (see `checks.max_row_fall`).")]
DEFAULT_CONFIG = Path("lorestream.toml")
Params = TypeVar("Params")

# Read by Prefect, vLLM and OpenMP when they are first imported, which the verbs do.
ENVIRONMENT = {
    # Threads that spin while they wait take the cores from the engine's process.
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # What fails is raised, and said once, by us; Prefect would print its traceback of a mistyped path.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    # A cold ephemeral server takes 13 s on two cores; its own limit of 20 s is too near.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


@app.command
def init(folder: Path = Path("."), *, json: Json = False) -> None:
    """Write a commented configuration, unless there is one, and an empty warehouse into FOLDER."""
    from flows.setup import initialise

    made = initialise(folder)
    wrote = "Kept" if made["kept_config"] else "Wrote"
    print_result(
        made,
        json,
        lambda: f"{wrote} {made['config']} and made an empty warehouse in {made['warehouse']}.\n{made['next']}",
    )


@importer.command
def movielens(path: Path, *, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Turn a MovieLens folder or zip at PATH into the input tables beside the configuration."""
    from flows.setup import import_movielens_tables

    made = import_movielens_tables(path, config)
    print_result(made, json, lambda: "\n".join(f"{name}: {value}" for name, value in made.items()))


@app.command
def run(
    *,
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    limit_users: Annotated[int | None, Parameter(help="Treat only a stable sample of so many users.")] = None,
    allow_fewer_rows: FewerRows = False,
    wait: Wait = 0.0,
    dry_run: Annotated[bool, Parameter(negative="", help="Print the planned calls and tokens; write nothing.")] = False,
    json: Json = False,
) -> None:
    """Ingest, partition, plan, generate, encode, adapt, publish: whatever is missing, and nothing else."""
    overrides = _checked(config, _overrides(model, allow_fewer_rows))
    from flows.refresh import RefreshParams, preview, refresh

    params = _params(RefreshParams, config=config, overrides=overrides, limit_users=limit_users, wait_s=wait)
    with results_only(json) as out:
        if dry_run:
            write_result(out, preview(params), json)
        else:
            write_result(out, refresh(**dict(params)), json)


@app.command
def backfill(
    *,
    from_: Annotated[datetime, Parameter(name="--from", help="Start of the interval of event time (inclusive, UTC).")],
    to: Annotated[datetime, Parameter(name="--to", help="End of the interval (exclusive, UTC).")],
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    limit_users: Annotated[int | None, Parameter(help="Treat only a stable sample of so many users.")] = None,
    chunk_days: Annotated[float | None, Parameter(help="Publish after so many days of event time each.")] = None,
    chunk_calls: Annotated[int, Parameter(help="Publish after so many calls each, where no days are given.")] = 5000,
    wait: Wait = 0.0,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Print the plan, its calls and chunks; write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """The same for partitions sealed in [FROM, TO) and the items in them: only what is missing there.

    With --wait, other writers that wait as well come in between chunks.
    """
    overrides = _checked(config, _overrides(model))
    from flows.backfill import BackfillParams, preview_backfill
    from flows.backfill import backfill as backfill_flow

    params = _params(
        BackfillParams,
        config=config,
        overrides=overrides,
        start=from_,
        end=to,
        limit_users=limit_users,
        wait_s=wait,
        chunk_days=chunk_days,
        chunk_calls=chunk_calls,
    )
    with results_only(json) as out:
        write_result(out, preview_backfill(params) if dry_run else backfill_flow(**dict(params)), json)


@app.command
def train(
    *,
    config: ConfigPath = DEFAULT_CONFIG,
    backbone: Annotated[
        str | None, Parameter(help="The CTR model to train with, instead of `adapter.backbone`: DeepFM, DIN, ...")
    ] = None,
    objective: Annotated[
        Literal["ctr", "align"] | None,
        Parameter(help="`align` belongs to no CTR model: likeness to collaborative embeddings."),
    ] = None,
    fusion: Annotated[
        Literal["mean", "attention"] | None, Parameter(help="How a user's partitions become one vector.")
    ] = None,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    allow_fewer_rows: FewerRows = False,
    wait: Wait = 0.0,
    json: Json = False,
) -> None:
    """Fit the frozen adapter anew on the labelled behaviours and publish all rows with it.

    Later runs publish with this adapter until another is fitted.
    """
    given = {"adapter.backbone": backbone, "adapter.objective": objective, "adapter.fusion": fusion}
    named = {key: value for key, value in given.items() if value is not None}
    overrides = _checked(config, _overrides(model, allow_fewer_rows) | named)
    from flows.train import train as train_flow

    with results_only(json) as out:
        write_result(out, train_flow(config, overrides, wait), json)


@app.command
def lift(
    *,
    dataset: Annotated[
        Path | None, Parameter(help="Folder of MovieLens-1M as Parquet, instead of the warehouse.")
    ] = None,
    knowledge: Annotated[Path | None, Parameter(help="The dataset's texts (default: `knowledge` beside it).")] = None,
    quick: Annotated[bool, Parameter(negative="", help="A first look: few users, two backbones, three seeds.")] = False,
    protocols: Annotated[str | None, Parameter(help="Comma-separated: kar, time, cold_items, cold_users.")] = None,
    backbones: Annotated[str | None, Parameter(help="Comma-separated names of DeepCTR-Torch models.")] = None,
    arms: Annotated[
        str | None, Parameter(help="Comma-separated arms; the wrong_ and stale_ ones only if named.")
    ] = None,
    seeds: Annotated[int | None, Parameter(validator=Number(gte=1), help="How many seeds.")] = None,
    users: Annotated[int | None, Parameter(help="A random sample of so many users.")] = None,
    train_users: Annotated[int | None, Parameter(help="Of these, so many whose events may teach.")] = None,
    workers: Annotated[
        int, Parameter(validator=Number(gte=1), help="Cells that are fitted at once, each on one thread.")
    ] = 1,
    out: Annotated[Path | None, Parameter(help="Folder of cells, embeddings and reports (default: lift).")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """AUC with and without knowledge, with controls and intervals; an interrupted matrix goes on where it was."""
    from flows.lift import lift as measure
    from flows.lift import matrix_config, summary

    matrix = _params(
        lambda **values: matrix_config(quick, **values),
        protocols=_names(protocols),
        backbones=_names(backbones),
        arms=_names(arms),
        seeds=None if seeds is None else tuple(range(seeds)),
        users=users,
        train_users=train_users,
    )
    # A matrix takes long: what is done is told beside the JSON too.
    with results_only(False) as stream:
        report = measure(config, dataset, knowledge, out, matrix, workers)
        write_result(stream, report, json, lambda: summary(report))


@pools.command
def build(
    *,
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    json: Json = False,
) -> None:
    """Build a pool now from all stored texts of the model; `run` does it by itself when enough is new."""
    from flows.config import load_config
    from flows.pools import build as build_pool

    with results_only(json) as out:
        write_result(out, build_pool(load_config(config, _overrides(model))), json)


@pools.command
def stats(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """The warehouse's pools, oldest first: digest, what they were made for, texts, tokens, groups, bytes."""
    from flows.config import load_config
    from flows.pools import stats as pool_stats

    print_result(pool_stats(load_config(config)), json)


@groups.command(name="build")
def build_groups(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Cluster users and items anew, as a new generation; `run` does it by itself only the first time."""
    from flows.config import load_config
    from flows.grouping import build as cluster_anew

    with results_only(json) as out:
        write_result(out, cluster_anew(load_config(config)), json)


@groups.command(name="stats")
def group_stats(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """The generations of groups, oldest first: numbers, sizes, how well named items stand for members."""
    from flows.config import load_config
    from flows.grouping import stats as generations

    print_result(generations(load_config(config)), json)


@requests.command
def export(
    out: Path,
    *,
    format: Annotated[Literal["openai-batch"], Parameter(help="What the files are for.")] = "openai-batch",
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    limit_users: Annotated[int | None, Parameter(help="Only a stable sample of so many users.")] = None,
    json: Json = False,
) -> None:
    """Write the calls that a run would make now to OUT, to have them answered elsewhere."""
    from flows.config import load_config
    from flows.interchange import export_requests

    with results_only(json) as stream:
        write_result(stream, export_requests(load_config(config, _overrides(model)), out, limit_users), json)


@importer.command
def knowledge(
    file: Path,
    *,
    entity: Annotated[str | None, Parameter(help="What all rows are about, where no column `entity` says it.")] = None,
    members: Annotated[Path | None, Parameter(help="Who is in which group: columns entity, id, group_id.")] = None,
    as_of: Annotated[datetime | None, Parameter(help="End of what the groups' clustering saw (UTC).")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    json: Json = False,
) -> None:
    """Take in texts made elsewhere: results of a batch (.jsonl), or Parquet or CSV with id, text and model."""
    from flows.config import load_config
    from flows.interchange import import_knowledge

    until = as_of.replace(tzinfo=UTC) if as_of is not None and as_of.tzinfo is None else as_of
    with results_only(json) as out:
        write_result(out, import_knowledge(load_config(config, _overrides(model)), file, entity, members, until), json)


@app.command
def factors(
    out: Path,
    *,
    noun: Annotated[str | None, Parameter(help="What one item is called, if you want to say it.")] = None,
    count: Annotated[int, Parameter(help="How many factors to ask for.")] = 9,
    sample: Annotated[int, Parameter(help="How many items of the catalogue to show.")] = 40,
    config: ConfigPath = DEFAULT_CONFIG,
    model: Annotated[str | None, Parameter(help="Folder or id of the LLM, instead of `engine.model`.")] = None,
    json: Json = False,
) -> None:
    """Ask the LLM which factors matter in the catalogue, and write them to OUT, a scenario file to edit."""
    from flows.config import load_config
    from flows.factors import propose_factors

    with results_only(json) as stream:
        write_result(stream, propose_factors(load_config(config, _overrides(model)), out, noun, count, sample), json)


@app.command
def quality(
    *,
    samples: Annotated[int, Parameter(validator=Number(gte=0), help="Texts shown per status.")] = 3,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """What the quality gate said of the stored texts: counts per status, and samples of what is not used."""
    from flows.config import load_config
    from flows.quality import quality_report

    print_result(quality_report(load_config(config), samples), json)


@app.command
def explain(
    *,
    at: Annotated[datetime, Parameter(help="The moment of the event that sees the value (UTC).")],
    user: Annotated[str | None, Parameter(help="Id of the user.")] = None,
    item: Annotated[str | None, Parameter(help="Id of the item, instead.")] = None,
    clock: Annotated[Literal["event", "known"], Parameter(help="Rebuilt from events, or as serving had it.")] = "event",
    snapshot: Annotated[str | None, Parameter(help="Another snapshot than the current one.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """What made a value: the row seen at a moment, its events, prompts, texts, model and adapter."""
    from flows.config import load_config
    from flows.explaining import as_page
    from flows.explaining import explain as explain_value

    found = explain_value(load_config(config), user, item, at, clock, snapshot)
    print_result(found, json, lambda: as_page(found))


@app.command(name="export")
def export_tables(
    out: Path,
    *,
    to: Annotated[Literal["fuxictr", "recbole", "npy", "easyrec", "feast"], Parameter(help="Who will load it.")],
    at: Annotated[datetime | None, Parameter(help="End of the training data (UTC): nothing known later.")] = None,
    snapshot: Annotated[str | None, Parameter(help="Another snapshot than the current one.")] = None,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Write the published vectors to the folder OUT in another library's format."""
    from flows.config import load_config
    from flows.exporting import export as export_vectors

    print_result(export_vectors(load_config(config), to, out, at, snapshot), json)


@app.command
def status(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """What the warehouse holds: events, partitions, pending calls, texts, tokens, snapshots."""
    from flows.config import load_config
    from warehouse.status import warehouse_status

    print_result(warehouse_status(load_config(config).root), json)


@snapshots.default
def list_snapshots(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """The published snapshots, oldest first."""
    from flows.config import load_config
    from warehouse.status import snapshot_list

    print_result({"snapshots": snapshot_list(load_config(config).root)}, json)


@snapshots.command
def diff(old: str, new: str | None = None, /, *, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """What the snapshot NEW (default: the current one) shows that OLD does not: rows, coverage, drift of vectors."""
    from flows.config import load_config
    from flows.snapshots import compare

    print_result(compare(load_config(config).root, old, new), json)


@snapshots.command
def pin(snapshot_id: str, *, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Keep the snapshot SNAPSHOT_ID, however many come after it."""
    from flows.config import load_config
    from flows.snapshots import set_pin

    print_result(set_pin(load_config(config), snapshot_id, True), json)


@snapshots.command
def unpin(snapshot_id: str, *, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Let retention retire the snapshot SNAPSHOT_ID again."""
    from flows.config import load_config
    from flows.snapshots import set_pin

    print_result(set_pin(load_config(config), snapshot_id, False), json)


@app.command
def rollback(snapshot_id: str, *, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Make readers see the snapshot SNAPSHOT_ID again; no file is removed."""
    from flows.config import load_config
    from flows.setup import roll_back

    print_result(roll_back(load_config(config), snapshot_id), json)


@app.command
def erase(
    *,
    user: Ids = (),
    item: Ids = (),
    rebuild_groups: Annotated[bool, Parameter(negative="", help="Cluster everybody who is left anew.")] = False,
    wait: Wait = 0.0,
    dry_run: Annotated[bool, Parameter(negative="", help="Print what would be found; write nothing.")] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Remove users or items from everything that is stored, from events to pools, and bar them from coming back.

    Old snapshots that hold them expire, pinned or not.
    """
    from flows.config import load_config
    from flows.erase import erase_entities

    with results_only(json) as out:
        made = erase_entities(
            load_config(config), user, item, rebuild_groups=rebuild_groups, dry_run=dry_run, wait_s=wait
        )
        write_result(out, made, json)


@app.command
def compact(*, wait: Wait = 0.0, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Merge small files, those of the public tables into a new snapshot of the same rows; then `gc`."""
    _checked(config, {})
    from flows.compact import compact as compact_flow

    with results_only(json) as out:
        write_result(out, compact_flow(config, wait_s=wait), json)


@app.command
def sync(*, config: ConfigPath = DEFAULT_CONFIG, json: Json = False) -> None:
    """Bring the local folder and the `store` to the same state; verbs that write do it by themselves."""
    from flows.config import load_config
    from flows.syncing import synchronise

    with results_only(json) as out:
        write_result(out, synchronise(load_config(config)), json)


@app.command
def gc(
    *,
    dry_run: Annotated[bool, Parameter(negative="", help="Print what would be removed; remove nothing.")] = False,
    grace_hours: Annotated[
        float | None,
        Parameter(help="How long what was given up stays for readers, instead of `snapshots.grace_hours`."),
    ] = None,
    forget_lost: Annotated[
        bool,
        Parameter(negative="", help="Give up texts and vectors whose files are gone: a run asks for them again."),
    ] = False,
    config: ConfigPath = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Retire snapshots beyond `snapshots.keep`, and remove files that no snapshot, ledger or knowledge names."""
    from flows.config import load_config
    from flows.garbage import remove_garbage

    given = {} if grace_hours is None else {"snapshots.grace_hours": grace_hours}
    print_result(remove_garbage(load_config(config, given), dry_run, forget_lost=forget_lost), json)


def _overrides(model: str | None, allow_fewer_rows: bool = False) -> dict[str, object]:
    given: dict[str, object] = {"checks.max_row_fall": 1.0} if allow_fewer_rows else {}
    if model is not None:
        # A folder given on the command line is relative to where the command stands, not to the config file.
        given["engine.model"] = str(Path(model).resolve()) if model and Path(model).exists() else model
    return given


def _checked(config: Path, overrides: dict[str, object]) -> dict[str, object]:
    """`overrides`, once they and the file are known to be right: that is told before Prefect and Beam are loaded."""
    from flows.config import load_config

    load_config(config, overrides)
    return overrides


def _names(given: str | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(name.strip() for name in given.split(","))


def _params(make: Callable[..., Params], **values: object) -> Params:
    from pydantic import ValidationError

    try:
        return make(**values)
    except ValidationError as error:
        # Where a fault lies between several parameters, its message names the values.
        raise UsageError(f"{'; '.join(_said(error.errors()))}. See `lorestream --help`.") from error


def _said(faults: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    places = [fault["loc"] for fault in faults]
    for fault in faults:
        place = fault["loc"]
        # A whole has a fault because its part has.
        if not any(len(other) > len(place) > 0 and other[: len(place)] == place for other in places):
            message = fault["msg"].removeprefix("Value error, ")
            yield f"{'.'.join(map(str, place))} = {fault['input']!r}: {message}" if place else message


def _complain(message: str) -> None:
    sys.stderr.write(f"lorestream: {message}\n")


def main() -> None:
    """Entry point of the `lorestream` command; exits with the codes of this module's docstring."""
    code = call(sys.argv[1:])
    hush_exit()
    sys.exit(code)


def call(arguments: list[str]) -> int:
    """The exit code of one command line, its errors printed to standard error in one line each."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _terminated_as_interrupted():
        try:
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        except CycloptsError as error:
            _complain(f"{error}\nSee `lorestream --help`.")
            return UsageError.exit_code
        except LorestreamError as error:
            _complain(f"{error}")
            return error.exit_code
        except OSError as error:
            remedy = _remedy(error)
            if remedy is None:
                raise
            where = f" ({error.filename})" if error.filename else ""
            _complain(
                f"{error.strerror}{where}. What was finished is stored; {remedy} and run the same command to go on."
            )
            return 1
        except KeyboardInterrupt:
            _complain("interrupted; what was finished is stored, run the same command to go on")
            return 1
        except RuntimeError as error:
            if not _is_unreachable(error):
                raise
            address = os.environ.get("PREFECT_API_URL")
            _complain(
                f"PREFECT_API_URL is {address}, where no Prefect server answers. Start it with `prefect server start`, "
                "or unset the variable: then the run has a server of its own."
            )
            return 1
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: engines are closed, and it is said what is stored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _remedy(error: OSError) -> str | None:
    """What may help against the disk's refusal; None where the fault is not the disk's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space (`lorestream gc` may help)"
    if error.filename is not None and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "see that this user may write there"
    return None


def _is_unreachable(error: RuntimeError) -> bool:
    return "Failed to reach API" in str(error) and "PREFECT_API_URL" in os.environ


if __name__ == "__main__":
    main()
