"""Configuration of the engines; importing it costs nothing."""

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, JsonValue, field_validator, model_validator

from augment.engine.protocol import RESERVED_BODY_KEYS, MaxTokensField


class EngineConfig(BaseModel, frozen=True, extra="forbid"):
    """Which model, how it samples, and how much of the machine it may use."""

    # Which engine this section configures; neither vLLM's business nor a part of any key.
    backend: Literal["vllm"] = "vllm"
    model: str
    # None: the model's chat template if it has one, the plain prompt otherwise.
    chat: bool | None = None
    # Switches that the model's own template knows, such as enable_thinking of Qwen3.
    chat_template_kwargs: dict[str, bool | int | float | str] = {}
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    # Without effect at temperature 0.
    seed: int = 0
    max_new_tokens: int = Field(default=512, ge=1)

    # None: the model's context, or as much of it as the KV cache holds.
    max_model_len: int | None = Field(default=None, ge=2)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    # Throughput of small models on two cores stops growing here; a larger batch only needs more KV cache.
    max_concurrent: int = Field(default=128, ge=1)
    # CPU only; a GPU gives what `gpu_memory_utilization` leaves.
    kv_cache_gib: float = Field(default=2.0, gt=0.0)
    gpu_memory_utilization: float = Field(default=0.9, gt=0.0, le=1.0)
    tensor_parallel_size: int = Field(default=1, ge=1)
    # None: eager on CPU, where compiling costs a minute and wins little; compiled graphs on a GPU.
    enforce_eager: bool | None = None
    # Cold start of a large model on a busy node takes minutes; a short limit kills healthy engines.
    ready_timeout_s: int = Field(default=900, ge=1)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        _check_top_p(self.temperature, self.top_p)
        if self.chat is False and self.chat_template_kwargs:
            raise ValueError(f"chat = false uses no template, but chat_template_kwargs = {self.chat_template_kwargs}")
        if self.max_model_len is not None and self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for a prompt in "
                f"max_model_len = {self.max_model_len}"
            )
        return self


class OpenAIConfig(BaseModel, frozen=True, extra="forbid"):
    """Which server that speaks OpenAI's protocol, which of its models, how it samples, and the patience to have."""

    backend: Literal["openai"]
    # Up to and with the version, as OpenAI's own client takes it: http://127.0.0.1:8000/v1.
    base_url: str
    # As the server calls it.
    model: str = Field(min_length=1)
    # A server does not say which weights it serves. Whatever is written here enters every request key: change it when
    # the server's model changes under the same name, and its texts are asked for anew.
    revision: str = ""
    # Name of the environment variable with the key, never the key itself. A server without keys needs none.
    api_key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    # The server applies its model's chat template; false sends the plain prompt to /completions.
    chat: bool = True
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    # Without effect at temperature 0.
    seed: int = 0
    max_new_tokens: int = Field(default=512, ge=1)
    # OpenAI's reasoning models know only the second; most other servers only the first.
    max_tokens_field: MaxTokensField = "max_tokens"
    # What else the server should be sent with every call, such as chat_template_kwargs or repetition_penalty of vLLM.
    # It enters every request key. What is not sent is the server's choice: `vllm serve` takes it from the model's
    # generation_config.json.
    extra_body: dict[str, JsonValue] = {}

    # Calls at once. A served vLLM batches what it gets; a hosted model counts calls against a rate limit.
    max_concurrent: int = Field(default=32, ge=1)
    # One attempt, from its first byte to its last. A long answer on a busy server takes minutes.
    request_timeout_s: float = Field(default=600.0, gt=0.0)
    # How long a call may fail before it is given up, from its first failure on. A large model takes minutes to start
    # again, and a run that waits for it keeps its place.
    give_up_after_s: float = Field(default=900.0, ge=0.0)
    # The wait after a failure is random, up to `first_retry_s` after the first and twice as long after each further
    # one, up to `longest_retry_s`.
    first_retry_s: float = Field(default=1.0, gt=0.0)
    longest_retry_s: float = Field(default=30.0, gt=0.0)
    # None: as many as the server takes.
    requests_per_minute: int | None = Field(default=None, ge=1)
    # Of prompts and answers together.
    tokens_per_minute: int | None = Field(default=None, ge=1)

    # A local folder with the model's tokenizer, to forecast costs and to know which of its tokens to strip from titles.
    tokenizer: str | None = None

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not the address of a server; it looks like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "holds more than an address (a user, a password or a query); name the variable with the key in "
                "api_key_env"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        _check_top_p(self.temperature, self.top_p)
        if taken := sorted(self.extra_body.keys() & RESERVED_BODY_KEYS):
            raise ValueError(f"extra_body sets {', '.join(taken)}, which are settings of their own or not for a body")
        return self


def _check_top_p(temperature: float, top_p: float) -> None:
    if temperature == 0.0 and top_p != 1.0:
        raise ValueError(f"top_p = {top_p} has no effect at temperature 0; leave it out, or set temperature above 0")
