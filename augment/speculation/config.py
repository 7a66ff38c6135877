"""What speculative decoding may do, and on which vLLM; importing it costs nothing."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from warehouse.errors import ConfigError

# The proposer and the verifier touch the model runner's own attributes, which any release may rename.
TESTED_VLLM = ("0.32.0",)

GROUP = "lorestream_group"
"""Key in a request's `SamplingParams.extra_args` that names the group of the pool to draft from."""

Exact = Literal["digits", "quotes", "json"]


class SpeculationConfig(BaseModel, frozen=True, extra="forbid"):
    """Drafting from the retrieval pool and how drafts are verified.

    `lossless` gives the text of greedy decoding (or, when sampling, its distribution); `relaxed` is DARE's rule: a
    draft token passes when it is the model's first choice, or one of its `k` first with a probability above `p`.
    """

    mode: Literal["off", "lossless", "relaxed"] = "lossless"
    k: int = Field(default=2, ge=1)
    p: float = Field(default=0.1, ge=0.0, lt=1.0)

    # A ceiling: the confidence of a draft and the budget of a step decide below it.
    max_draft_tokens: int = Field(default=32, ge=1, le=128)
    # `measured` drafts what the measured step times say will pay. `fixed` drafts all that is likely enough: a relaxed
    # text then depends on nothing but model, prompt and pool, and speculation may lose time in large batches.
    budget: Literal["measured", "fixed"] = "measured"
    # Of the whole draft up to a token, that it is accepted; the authors' cut is none, SuffixDecoding's 0.1.
    min_probability: float = Field(default=0.1, ge=0.0, lt=1.0)
    # True: only the pool drafts. False: texts of the running job draft as well, finished or still being written (the
    # authors' code learns from its own output, too); a relaxed text then also depends on what was generated before it.
    frozen_pool: bool = False

    # The guards of `relaxed`; each one's other value (false, empty, None) is the authors' rule as it stands.
    # An end of sequence that the model wants is an answer; drafting past it makes texts longer, not better.
    keep_end: bool = True
    # Where a second choice is a wrong fact or broken syntax: tokens with digits, all between quotation marks, JSON's
    # punctuation.
    exact: tuple[Exact, ...] = ()
    max_relaxed_per_text: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.mode != "relaxed":
            given = self.model_fields_set & {"k", "p", "keep_end", "exact", "max_relaxed_per_text"}
            if given:
                raise ValueError(f"{', '.join(sorted(given))} have no effect in mode = {self.mode!r}; leave them out")
        if len(set(self.exact)) != len(self.exact):
            raise ValueError(f"exact = {list(self.exact)} names a class twice")
        return self

    @property
    def verification(self) -> str:
        """`strict` or `relaxed(k,p)`, with the guards that are not at their defaults: what enters a request key."""
        if self.mode != "relaxed":
            return "strict"
        parts = [f"{self.k}", f"{self.p:g}"]
        if not self.keep_end:
            parts.append("override_end")
        if self.exact:
            parts.append("exact=" + "+".join(sorted(self.exact)))
        if self.max_relaxed_per_text is not None:
            parts.append(f"most={self.max_relaxed_per_text}")
        return f"relaxed({','.join(parts)})"


class PoolConfig(BaseModel, frozen=True, extra="forbid"):
    """When a run makes a new pool from the texts of earlier runs, and how much goes into it."""

    # Fewer texts hardly repeat each other, and the texts of the run itself are drafted from in any case.
    min_texts: int = Field(64, ge=1)
    # A new pool once there are this many times the texts of the serving one: each is then built a few times in all.
    growth: float = Field(1.25, gt=1.0)
    # The newest texts go first. Ten bytes each on disk, and in the page cache of every worker's machine.
    max_tokens: int = Field(50_000_000, ge=1)


class UnsupportedVllm(ConfigError):
    """This vLLM was never tested with our speculation."""

    def __init__(self, found: str, tested: tuple[str, ...]) -> None:
        self.found, self.tested = found, tested
        super().__init__(
            f"Speculation was tested with vLLM {', '.join(tested)}, and this is vLLM {found}. "
            f'Install a tested version, or set [speculation] mode = "off".'
        )


def check_vllm(version: str) -> None:
    """Raises UnsupportedVllm unless `version`, without its build's name, is a tested one."""
    if version.split("+")[0] not in TESTED_VLLM:
        raise UnsupportedVllm(version, TESTED_VLLM)


def check_sampling(speculation: SpeculationConfig, temperature: float) -> None:
    """Raises ConfigError for a sampling that the mode is not defined for."""
    if speculation.mode == "relaxed" and temperature > 0:
        raise ConfigError(
            f'speculation.mode = "relaxed" is defined for greedy decoding only, and engine.temperature is {temperature}'
            '. Set it to 0, or speculation.mode = "lossless", which keeps the distribution.'
        )
