"""Stages as Prefect tasks."""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from warehouse.errors import LorestreamError


def _worth_retrying(_task: object, _run: object, state: Any) -> bool:
    """An engine or disk may recover; a mistake in the configuration or the input will not."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, LorestreamError) and error.exit_code != 1)


def stage_task(function: Callable[..., object], retries: int = 0) -> Any:
    """A Prefect task of one stage; what it does stays callable without Prefect as `task.fn`."""
    # No cache: what is done is known from the warehouse, and a Run holds things that cannot be pickled.
    return task(
        name=function.__name__.replace("_", "-"),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=[5.0, 60.0][:retries],
        retry_jitter_factor=0.3,
        retry_condition_fn=_worth_retrying,
    )(function)
