"""The stages that decide what the LLM is asked and ask it: groups, plan, calls; and the forecast of a dry run."""

import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import cast

import pyarrow as pa

from adapters.training import check_category
from augment.budget import Meter, read_spending
from augment.engine.base import DraftingEngine
from augment.engine.config import OpenAIConfig
from augment.forecast import expected_tokens, forecast_calls
from augment.generate import GenerationReport, generate
from augment.pending import Choice, choose
from augment.plan import later_calls, plan_requests
from augment.quality.status import Status
from flows.progress import StageProgress
from flows.quality import shared_among
from flows.run import Run
from prompts.lint import check_scenario, doubt
from warehouse.names import attribute_columns
from warehouse.schemas import ITEM_VERSIONS, USER_VERSIONS

log = logging.getLogger("lorestream")


def ask(
    run: Run,
    progress: StageProgress,
    plan: Callable[[Run, int], int],
    choose_pool: Callable[[Run], None],
    call_engine: Callable[[Run, StageProgress], int],
) -> None:
    """Plan and make calls, wave by wave: after the first, what builds on the answers of the one before.

    The steps are parameters, so that a flow can make tasks of them.
    """
    for wave in count():
        planned = plan(run, wave)
        if not wave:
            choose_pool(run)
        made = call_engine(run, progress)
        # What one wave leaves of the budget goes to those who were left waiting: answers are often shorter than they
        # might have been, and not every summary has a shift.
        waves = run.config.knowledge.waves
        # The second is looked at in any case: an earlier run may have ended between the two, or wanted no cascade.
        more = (planned or made or not wave) if waves else (made and run.report.calls_waiting)
        if not more:
            return


def plan(run: Run, wave: int = 0) -> int:
    """Write down the calls that are missing and can be asked now; how many these are.

    Waves after the first ask what builds on answers. Raises ConfigError when `labels.category` names no item attribute.
    """
    doubtful = None
    with run.timed("plan"):
        if not wave:
            # Read again when the adapter is fitted, after all calls were paid for: refused before them.
            check_category(run.ledger.files("items"), run.config.labels.category)
            doubtful = _lint(run)
        file = run.file("requests", f"{wave:03d}" if wave else "")
        made = plan_requests(
            run.planning_sources,
            run.writer,
            run.identity,
            run.wishes,
            run.scope,
            run.clock(),
            file,
            first_wave=wave == 0,
        )
        if made.calls:
            if doubtful:
                log.warning("%s.", doubtful)
                run.report.notes.append(doubtful)
            run.ledger.commit("plan", add={"requests": [file]}, stats={"calls": made.planned}, now=run.clock())
        if made.untitled_partitions and not wave:
            run.report.notes.append(
                f"{made.untitled_partitions} partitions wait: none of their items stands in the catalogue with a title"
                + (" and was liked" if run.config.prompts.feedback == "liked" else "")
            )
        if made.untitled_items and not wave:
            run.report.notes.append(f"{made.untitled_items} items have a title with nothing to ask about")
    return made.calls


def _lint(run: Run) -> str | None:
    """What is doubtful about the scenario. Raises ConfigError for one that is another domain's, or names columns that
    the inputs do not have."""
    # Before there is a catalogue nothing can be said of its columns.
    if not run.ledger.files("items"):
        return None
    scenario, columns = run.writer.scenario, attribute_columns(run.ledger.files("items"), ITEM_VERSIONS)
    user_columns = attribute_columns(run.ledger.files("users"), USER_VERSIONS)
    check_scenario(scenario, columns, user_columns, f"the scenario {run.config.scenario}")
    return doubt(scenario, columns)


def call_engine(run: Run, progress: StageProgress) -> int:
    """Make the pending calls that the budget allows and store their texts; how many were answered.

    The model is loaded only for a call.
    """
    config = run.config
    pending = run.pending
    if not pending.num_rows:
        return 0
    meter = Meter(run.root, config.budget, run.clock(), config.engine.max_new_tokens)
    choice = choose_calls(run, pending, meter)
    if not choice.granted.num_rows:
        _note_waiting(run, choice.waiting.num_rows, meter.period)
        return 0
    log.info("%d calls to %s", choice.granted.num_rows, run.engine.model)
    with run.timed("generate"):
        made = generate(
            choice.granted,
            run.engine,
            run.root / "knowledge",
            # A retried task is a new attempt of the same run and must not write over its segments.
            f"{run.name}-{secrets.token_hex(2)}",
            config.segments,
            run.clock,
            meter=meter,
            gate=run.gate,
            stored=run.keep_segment,
            progress=lambda done, total, _tokens, rate: progress.update("generate", done, total, rate, "tokens"),
        )
    _count(run, made)
    if made.calls:
        new = [file for file in run.knowledge_files if file.name.startswith(run.name)]
        for said in shared_among(new, run.prompt_versions):
            log.warning("%s", said)
            run.report.notes.append(said)
    _note_waiting(run, made.waiting + choice.waiting.num_rows, meter.period)
    return made.calls


def choose_calls(run: Run, pending: pa.Table, meter: Meter) -> Choice:
    """Which of the pending calls the budget is expected to pay for."""
    config = run.config
    tokens = expected_tokens(
        run.ledger.files("requests"),
        run.knowledge_files,
        run.identity.engine_id,
        config.engine.max_new_tokens,
        set(pending.column("kind").to_pylist()) | set(config.knowledge.kinds),
    )
    return choose(pending, config.knowledge.waves, tokens, meter.calls_left, meter.tokens_left)


def _count(run: Run, made: GenerationReport) -> None:
    """Add one generation to the run's report, which may hold several waves."""
    report, max_new_tokens = run.report, run.config.engine.max_new_tokens
    if made.calls:
        if isinstance(run.engine, DraftingEngine):
            report.speculation = run.engine.speculation_summary()
        stats = {**asdict(made), "speculation": report.speculation}
        run.ledger.commit("generate", add={}, stats=stats, now=run.clock())
    seconds = report.tokens_out / report.tokens_per_s if report.tokens_per_s else 0.0
    seconds += made.tokens_out / made.tokens_per_s if made.tokens_per_s else 0.0
    report.calls += made.calls
    report.retries += made.retries
    report.retries_mended += made.mended
    report.calls_by_kind = dict(Counter(report.calls_by_kind) + Counter(made.calls_by_kind))
    report.texts_by_status = dict(Counter(report.texts_by_status) + Counter(made.statuses))
    report.tokens_in += made.tokens_in
    report.tokens_out += made.tokens_out
    report.tokens_per_s = round(report.tokens_out / seconds, 1) if seconds else 0.0
    # They stay pending, so a later wave meets them again.
    report.prompts_too_long = max(report.prompts_too_long, made.too_long)
    if made.too_long:
        larger = "Raise engine.max_model_len or engine.kv_cache_gib"
        if isinstance(run.config.engine, OpenAIConfig):
            larger = "Start the server with a larger context"
        _note(
            run,
            " prompts do not fit the engine's context",
            f"{report.prompts_too_long} prompts do not fit the engine's context and wait: the longest needs "
            f"{made.longest_prompt + max_new_tokens} tokens ({made.longest_prompt} and {max_new_tokens} for its "
            f"answer). {larger}, lower engine.max_new_tokens, or shorten the prompts in the scenario",
        )
    statuses = report.texts_by_status
    unusable = {status: count for status, count in statuses.items() if status != Status.OK}
    if unusable:
        reasons = ", ".join(f"{status} {count}" for status, count in unusable.items())
        _note(
            run,
            " texts are kept but not used",
            f"{sum(unusable.values())} of {sum(statuses.values())} texts are kept but not used ({reasons}); "
            "`lorestream quality` shows samples",
        )
    if statuses.get(Status.TRUNCATED):
        _note(
            run,
            " texts were cut at engine.max_new_tokens",
            f"{statuses[Status.TRUNCATED]} texts were cut at engine.max_new_tokens = {max_new_tokens}. Raise it "
            "for whole ones; as it is a part of every call, all calls are then made anew",
        )


def _note_waiting(run: Run, calls: int, period: str) -> None:
    run.report.calls_waiting = calls
    said = (
        f"{calls} calls wait for the next period: the budget of {period} is spent. `lorestream run --dry-run` shows "
        "who comes next"
    )
    _note(run, " calls wait for the next period", said if calls else None)


def _note(run: Run, about: str, note: str | None) -> None:
    """Put `note`, if there is one, in the place of what an earlier wave said with the words `about`."""
    run.report.notes[:] = [said for said in run.report.notes if about not in said]
    if note is not None:
        run.report.notes.append(note)


def forecast(run: Run) -> dict[str, object]:
    """What a run would go on to do: calls and tokens per kind, who is paid for and who waits, and the time it takes at
    the last run's rate."""
    config, pending = run.config, run.pending
    requests, knowledge, identity = run.ledger.files("requests"), run.knowledge_files, run.identity.engine_id
    meter = Meter(run.root, config.budget, run.clock(), config.engine.max_new_tokens)
    choice = choose_calls(run, pending, meter)
    kinds = forecast_calls(
        choice.granted,
        requests,
        knowledge,
        identity,
        None if run.tokenizer is None else run.tokenizer.path,
        config.engine.max_new_tokens,
    )
    rates = [commit.stats["tokens_per_s"] for commit in run.ledger.commits() if commit.kind == "generate"]
    tokens_out = sum(kind.tokens_out for kind in kinds.values())
    return {
        "dry_run": True,
        "warehouse": str(config.root),
        "events": run.report.events,
        "partitions": run.report.partitions,
        "calls": choice.granted.num_rows,
        "tokens_in": sum(kind.tokens_in for kind in kinds.values()),
        "tokens_out": tokens_out,
        "planned": {kind: asdict(cost) for kind, cost in kinds.items()},
        "later_waves": later_calls(run.planning_sources, run.identity, run.prompt_versions, run.wishes, run.scope),
        "budget": _budget(run, choice),
        "estimated_seconds": round(tokens_out / cast(float, rates[-1]), 1) if rates and rates[-1] else None,
        "notes": run.report.notes,
    }


def _budget(run: Run, choice: Choice) -> dict[str, object]:
    """The period's budget, what it has spent, and who is the last to be paid for."""
    budget = run.config.budget
    if not budget.limited:
        return {}
    period = budget.period_of(run.clock())
    spent = read_spending(run.root, period).closed()
    return {
        "period": period,
        "max_calls": budget.max_calls,
        "max_output_tokens": budget.max_output_tokens,
        "spent_calls": spent.calls,
        "spent_output_tokens": spent.tokens,
        "waiting": choice.waiting.num_rows,
        **choice.explained(),
    }
