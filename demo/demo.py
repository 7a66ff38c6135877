"""The demo: the bundled world through the whole pipeline, then a CTR model with, without and with shuffled knowledge.

    make demo             (or: python -m demo.demo [--short] [--mixed] [--out FOLDER] [--model FOLDER])

Everything is real but the world: Beam, vLLM with the pocket LLM, the MiniLM encoder, the adapter, Prefect, DuckDB.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from adapters.knowledge import item_vectors, user_vectors
from adapters.lift.published import Augment, LiftConfig, LiftReport, Slice, measure_lift
from adapters.samples import Samples
from adapters.training import find_adapter, labelled_samples
from demo.world import World, make_world, write_inputs
from flows.cli import ENVIRONMENT
from flows.config import Config, load_config
from flows.printing import hush_exit, log_to_stderr
from flows.run import Run
from flows.setup import prepare_warehouse
from warehouse.reader import Warehouse
from warehouse.reader import open as open_warehouse
from warehouse.schemas import TIMESTAMP

HERE = Path(__file__).parent

CONFIG = """\
# The demo's configuration; `lorestream status --config demo-output/lorestream.toml` works on it.
warehouse = "warehouse"
[inputs.behaviours]
path = "inputs/behaviours.parquet"
[inputs.items]
path = "inputs/items.parquet"
[inputs.users]
path = "inputs/users.parquet"
[labels]
positive = "value > 3"
category = "genres"
[partitions]
sizes = [10, 20]
[prompts]
scenario = "movies"
[engine]
model = {model!r}
max_new_tokens = 256
kv_cache_gib = 1.0
# Half the time of float32 on CPUs that have it, and vectors that point the same way (cosine over 0.9999).
[encoder]
dtype = "bfloat16"
"""

# With --mixed: groups for all, and individual calls, with shifts, for half of what they would all cost.
MIXED = """\
[knowledge]
mode = "mixed"
cascade = "shift"
[budget]
max_calls = {calls}
period = "month"
traffic_days = 90.0
[groups]
until = {until}
"""

QUERY = """\
ATTACH '{catalogue}' AS features (READ_ONLY);
SELECT item_id, valid_from, rung, augment[1:4] FROM features.lorestream.item_features_latest LIMIT 3;"""


def main() -> None:
    """Run the demo and print what a newcomer needs to see; ends 1 when knowledge does not do what it must here."""
    parser = argparse.ArgumentParser(description="The whole pipeline on the bundled synthetic world.")
    parser.add_argument("--short", action="store_true", help="fewer users and one seed: a quick look, wider intervals")
    parser.add_argument(
        "--mixed", action="store_true", help="groups, shifts, and a budget of half the individual calls; AUC by rung"
    )
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="made anew by every call")
    parser.add_argument(
        "--model", type=Path, default=HERE / "weights", help="folder of the LLM (default: the pocket LLM)"
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    out: Path = arguments.out.resolve()
    # Prefect's database goes with the demo instead of into the user's home.
    os.environ["PREFECT_HOME"] = str(out / "prefect")
    log_to_stderr(logging.INFO)

    config = set_up(out, arguments.model.resolve(), arguments.short, arguments.mixed)
    report = run_pipeline(out)
    lift = measure(config, seeds=(0,) if arguments.short else (0, 1, 2))
    print_summary(config, report, lift, time.monotonic() - started)
    if not arguments.mixed:
        verdict(lift, "all" if arguments.short else "new_items")
    hush_exit()


def set_up(out: Path, model: Path, short: bool, mixed: bool) -> Config:
    """A fresh folder with the world's input tables, a configuration and an empty warehouse."""
    if out.exists() and not (out / "lorestream.toml").exists():
        raise SystemExit(f"{out} exists and is not a demo's folder; name another with --out.")
    shutil.rmtree(out, ignore_errors=True)
    world = make_world(small=short)
    write_inputs(world, out / "inputs")
    text = CONFIG.format(model=str(model))
    if mixed:
        moments = sorted(event.ts_us for event in world.events)
        until = datetime.fromtimestamp(moments[len(moments) // 2] / 1e6, UTC)
        text += MIXED.format(calls=individual_calls(world) // 2, until=until.isoformat())
    (out / "lorestream.toml").write_text(text, encoding="utf-8")
    config = load_config(out / "lorestream.toml")
    prepare_warehouse(config.root)
    return config


def individual_calls(world: World) -> int:
    """Calls that single summaries and facts would take: every sealed partition (10 events, then 20) and every item."""
    events = Counter(event.user_id for event in world.events)
    return sum((count >= 10) + max(count - 10, 0) // 20 for count in events.values()) + len(world.movies)


def run_pipeline(out: Path) -> dict[str, object]:
    """What `lorestream run` reports, by the flow that it calls."""
    from flows.refresh import refresh

    result: dict[str, object] = refresh(config=out / "lorestream.toml")
    return result


def measure(config: Config, seeds: tuple[int, ...]) -> LiftReport:
    """AUC and LogLoss of a small CTR model on held-out time, by what it knows.

    The vectors come out of the published tables by `join`, as a CTR team would read them; the embeddings of the texts
    are needed only to shuffle them.
    """
    run = Run(config, config.root)
    stored = run.stored
    users, items = user_vectors(stored), item_vectors(stored)
    samples = labelled_samples(run.labelled_events, users, items, config.adapter.history_length)
    adapter = find_adapter(config.root, stored.encoder_id, config.adapter.out_dim)
    assert adapter is not None, "the run that just ended made one"
    augment, rungs = published(open_warehouse(config.root), samples, config.adapter.out_dim)
    backbone = {
        name: getattr(config.adapter, name) for name in LiftConfig.model_fields if hasattr(config.adapter, name)
    }
    return measure_lift(
        samples,
        augment,
        users.vectors,
        items.vectors,
        LiftConfig.model_validate({**backbone, "seeds": seeds}),
        adapter.meta,
        parts={rung: rungs == rung for rung in sorted(set(rungs))} if config.knowledge.mode == "mixed" else None,
        progress=lambda arm, seed, seconds: print(f"  CTR model, {arm}, seed {seed}: {seconds:.0f} s", file=sys.stderr),
    )


def published(warehouse: Warehouse, samples: Samples, dim: int) -> tuple[Augment, np.ndarray]:
    """The published vectors as of each sample's time, and whose they are: `user own, item group` and so on [n]."""
    impressions = pa.table(
        {
            "user_id": samples.users.take(pa.array(samples.user)),
            "item_id": samples.items.take(pa.array(samples.item)),
            "ts": pa.array(samples.ts, pa.int64()).cast(pa.timestamp("us")).cast(TIMESTAMP),
        }
    )
    joined = warehouse.join(impressions).to_arrow()

    def matrix(column: str) -> np.ndarray:
        return np.asarray(joined.column(column).combine_chunks().flatten(), np.float32).reshape(-1, dim)

    def flags(column: str) -> np.ndarray:
        return np.asarray(joined.column(column).combine_chunks().to_numpy(zero_copy_only=False), bool)

    sides = (joined.column(f"{side}_rung").to_pylist() for side in ("user", "item"))
    rungs = np.array([f"user {user or 'none'}, item {item or 'none'}" for user, item in zip(*sides, strict=True)])
    augment = Augment(
        matrix("user_augment"), matrix("item_augment"), flags("has_user_augment"), flags("has_item_augment")
    )
    return augment, rungs


def print_summary(config: Config, report: dict[str, object], lift: LiftReport, seconds: float) -> None:
    """What happened, what it brought, two texts, and how to query the tables."""
    print(f"\nLorestream demo: a synthetic world and a toy LLM that knows it ({seconds:.0f} s)\n")
    print(f"  events            {report['events']:>8,}   ratings of invented movies by invented users")
    print(f"  partitions        {report['partitions']:>8,}   sealed pieces of a user's history, one LLM call each")
    print(f"  LLM calls         {report['calls']:>8,}   {_counts(report['calls_by_kind'])}")
    print(f"  output tokens     {report['tokens_out']:>8,}   {report['tokens_per_s']:,.0f} tokens/s in vLLM on CPU")
    print(f"  texts encoded     {report['texts_encoded']:>8,}   {report['texts_per_s']:,.0f} texts/s")
    print(f"  rows published    {report['rows_published']:>8,}   {_counts(report['rows_by_table'])}")
    for note in report["notes"] if isinstance(report["notes"], list) else []:
        print(f"  note: {note}")
    print_lift(lift)
    print_rungs(lift)
    print_texts(config)
    catalogue = config.root / "features.duckdb"
    query = QUERY.format(catalogue=_shortest(catalogue))
    print(f"The tables are in {_shortest(config.root / 'features')}. In any DuckDB shell:\n")
    print("  " + query.replace("\n", "\n  ") + "\n")
    with duckdb.connect() as con:
        con.execute(query.split(";")[0])
        print(con.sql(query.split(";")[1]))
    where = str(_shortest(config.root))
    print(f"From Python:  import lorestream; lorestream.open({where!r}).join(impressions).to_pandas()")


def print_lift(lift: LiftReport) -> None:
    """The three arms on held-out time, for all items and for those without a training interaction."""
    names = {
        "base": "without knowledge",
        "knowledge": "with knowledge",
        "shuffled": "with shuffled knowledge",
    }
    held_out, new = lift.samples["holdout"], lift.samples["holdout_new_items"]
    print(f"\n{lift.backbone} on the newest {held_out:,} events; {new:,} of them on items new to the model.")
    print(f"All arms hide item ids at random in training. Means of {len(lift.seeds)} seed(s).\n")
    print(f"  {'':<24}{'all items':^22}{'new items':^22}")
    print(f"  {'':<24}{'AUC':>9}{'LogLoss':>11}{'AUC':>11}{'LogLoss':>11}")
    for arm, slices in lift.measures.items():
        parts = (slices["all"], slices["new_items"])
        figures = [value for part in parts for value in (part.auc, part.logloss)]
        print(
            f"  {names[arm]:<24}"
            + "".join(f"{value:>11.4f}" if value is not None else f"{'-':>11}" for value in figures)
        )
    print()
    for difference in lift.differences:
        if difference.auc is not None and difference.part in ("all", "new_items"):
            part = "all items" if difference.part == "all" else "new items"
            interval = f"95 % interval {difference.auc_low:+.4f} to {difference.auc_high:+.4f}"
            print(f"  {names[difference.arm]}, {part}: {difference.auc:+.4f} AUC ({interval}, bootstrap over users)")


def print_rungs(lift: LiftReport) -> None:
    """AUC by whose knowledge the events' users and items had, where that was asked for."""
    parts = [part for part in lift.measures["base"] if part.startswith("user ")]
    if not parts:
        return
    print(f"\n  {'by rung':<28}{'events':>8}" + "".join(f"{arm:>11}" for arm in lift.measures) + "   (AUC)")
    for part in parts:
        row = [measure[part].auc for measure in lift.measures.values()]
        cells = "".join(f"{value:>11.4f}" if value is not None else f"{'-':>11}" for value in row)
        print(f"  {part:<28}{lift.samples[f'holdout_{part}']:>8,}{cells}")


def print_texts(config: Config) -> None:
    """One answer about an item and one about a user, as the LLM wrote them."""
    print("\nTwo of the texts:\n")
    with duckdb.connect() as con:
        for kind, label in (("item_facts", "item"), ("user_summary", "user")):
            rows = con.execute(
                f"""
                SELECT entity_id, prompt, text
                FROM read_parquet('{config.root}/requests/*.parquet') JOIN
                     read_parquet('{config.root}/knowledge/*.parquet') USING (request_key)
                WHERE kind = ? AND status = 'ok' ORDER BY entity_id DESC, partition_no LIMIT 1
                """,
                [kind],
            ).fetchall()
            for entity, prompt, text in rows:
                title = prompt.split('"')[1] if kind == "item_facts" else "first partition"
                print(f"  {label} {entity} ({title})\n    {text}\n")


def verdict(lift: LiftReport, part: Slice) -> None:
    """End 1 when knowledge is not worth more than nothing and than shuffled knowledge: then something is broken.

    The short form has too few events on new items for a verdict there; it goes by all items.
    """
    auc = {arm: slices[part].auc or 0.0 for arm, slices in lift.measures.items()}
    if not auc["knowledge"] > max(auc["base"], auc["shuffled"]):
        raise SystemExit(f"Knowledge does not help ({part}: {auc}): the world or the pipeline is wrong.")


def _counts(counts: object) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) if isinstance(counts, dict) else ""


def _shortest(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
