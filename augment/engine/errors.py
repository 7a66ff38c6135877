"""What can go wrong with an engine once its configuration was accepted."""

from warehouse.errors import LorestreamError


class EngineFailed(LorestreamError):
    """The engine could not start, or ended while it was generating.

    `stage` is `start` or `generate`, `cause` the engine's own words, `remedy` what to do next.
    """

    def __init__(self, model: str, stage: str, cause: str, remedy: str) -> None:
        self.model, self.stage, self.cause, self.remedy = model, stage, cause, remedy
        did = "could not start" if stage == "start" else "ended while generating"
        super().__init__(f"The engine for `{model}` {did}: {cause.rstrip('.')}. {remedy}")
