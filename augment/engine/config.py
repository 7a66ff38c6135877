"""Configuration of the vLLM engine; importing it costs nothing."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class EngineConfig(BaseModel, frozen=True, extra="forbid"):
    """Which model, how it samples, and how much of the machine it may use."""

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
        if self.temperature == 0.0 and self.top_p != 1.0:
            raise ValueError(
                f"top_p = {self.top_p} has no effect at temperature 0; leave it out, or set temperature above 0"
            )
        if self.chat is False and self.chat_template_kwargs:
            raise ValueError(f"chat = false uses no template, but chat_template_kwargs = {self.chat_template_kwargs}")
        if self.max_model_len is not None and self.max_new_tokens >= self.max_model_len:
            raise ValueError(
                f"max_new_tokens = {self.max_new_tokens} leaves no room for a prompt in "
                f"max_model_len = {self.max_model_len}"
            )
        return self
