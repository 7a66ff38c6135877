"""Beam's runners and their options, checked before a pipeline is built: Beam itself only logs what it cannot use."""

import argparse
from collections.abc import Sequence

from augment.beam import PipelineOptions, PipelineRunner, PortableRunner, StandardOptions, create_runner
from warehouse.errors import ConfigError


def runner_named(name: str) -> PipelineRunner:
    """The runner of that name, or of that full class name. Raises ConfigError for one that Beam cannot make."""
    try:
        return create_runner(name)
    except (ValueError, ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"`runner` is {name!r}, which Beam cannot start ({error}). Use FnApiRunner on one machine, or "
            f"one of {', '.join(StandardOptions.KNOWN_RUNNER_NAMES)}, or a runner class by its full name."
        ) from error


def pipeline_options(flags: Sequence[str], runner: PipelineRunner) -> PipelineOptions:
    """Beam's options from `flags`. Raises ConfigError for a flag that nothing would read, or a value it does not take.

    The job server of a portable runner (Flink, Spark) has options of its own, so there an unknown flag passes.
    """
    parsers: list[argparse.ArgumentParser] = []
    # The hook by which runners add their options is also the one way to the parser that knows all of Beam's.
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    [parser] = parsers
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(list(flags))
    except argparse.ArgumentError as error:
        raise ConfigError(
            f"`runner_options` are {list(flags)}: {error}. Correct or remove it; Beam's documentation of "
            "PipelineOptions lists the flags and their values."
        ) from error
    if known.runner is not None:
        raise ConfigError(
            f"`runner_options` name a runner, {known.runner}. Remove the flag and set `runner` = {known.runner!r}."
        )
    if unknown and not isinstance(runner, PortableRunner):
        raise ConfigError(
            f"`runner_options` hold {unknown}, which {type(runner).__name__} does not know. Remove or correct it; "
            "flags look like --direct_num_workers=2."
        )
    return PipelineOptions(list(flags))
