"""Text from a local model through vLLM.

vLLM is imported, and the model loaded, when the first request is there: planning, dry runs and runs with nothing to do
never pay for it. The loop below drives vLLM's step engine directly, because its `LLM.generate` wants all prompts first
and gives all texts last; here requests are pulled as slots become free and every text leaves as soon as it is finished.
"""

import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from augment.engine.base import Completion, Request
from augment.engine.config import EngineConfig
from augment.engine.errors import EngineFailed
from augment.engine.launch import cause_of, killed_by, start_vllm, stop_vllm
from augment.engine.model import ModelInfo, describe_model
from warehouse.errors import ConfigError

__all__ = ["PROMPT_TOO_LONG", "EngineConfig", "EngineStats", "VllmEngine"]

PROMPT_TOO_LONG = "prompt_too_long"

# Requests held inside vLLM for each one that may run: enough that a freed slot never stays empty for a step, few enough
# that memory does not grow with the run.
_HELD_FACTOR = 2


@dataclass(frozen=True)
class EngineStats:
    """Progress of an engine over all its calls so far.

    `generating_s` runs from the first request to the last completion of every call; loading (`load_s`) is apart.
    """

    finished: int = 0
    too_long: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    load_s: float = 0.0
    generating_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of generating, 0 before there are any."""
        return self.tokens_out / self.generating_s if self.generating_s > 0 else 0.0


class VllmEngine:
    """A local model, loaded once and used by all stages of a run.

    Building it reads a few files and raises ConfigError or InputError for a model that cannot be used as configured.
    vLLM runs in a process of its own unless VLLM_ENABLE_V1_MULTIPROCESSING=0, so that closing it gives all memory back
    and the rest of the program keeps its threads; a script that uses it needs the usual `if __name__ == "__main__"`.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[EngineStats], None] | None = None) -> None:
        self.config = config
        self.info: ModelInfo = describe_model(config.model)
        self._chat = _uses_chat(config, self.info)
        _check_context(config, self.info)
        self._on_progress = on_progress
        self._vllm: Any = None
        self._tokenizer: Any = None
        self._log_folder: Path | None = None
        self._closed = False
        self._generating = False
        self._ids = count()
        self.stats = EngineStats()

    @property
    def model(self) -> str:
        return self.info.name

    @property
    def revision(self) -> str:
        return self.info.revision

    @property
    def sampling(self) -> Mapping[str, object]:
        """What besides prompt and weights decides a text; enters every request key.

        Options that cannot matter are left out (the seed of greedy decoding), and so are batch size, numeric type and
        device: they move a text no more than another machine would, and must not make it paid for twice.
        """
        config = self.config
        sampling: dict[str, object] = {
            "chat": self._chat,
            "max_new_tokens": config.max_new_tokens,
            "repetition_penalty": config.repetition_penalty,
            "temperature": config.temperature,
        }
        if config.temperature > 0:
            sampling |= {"seed": config.seed, "top_p": config.top_p}
        if self._chat and config.chat_template_kwargs:
            sampling["chat_template_kwargs"] = dict(config.chat_template_kwargs)
        return sampling

    @property
    def generating_seconds(self) -> float:
        """Seconds from the first request to the last completion, without loading the model."""
        return self.stats.generating_s

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions as they finish, in any order, one per request; pulls requests as slots become free.

        A prompt that leaves no room for `max_new_tokens` in the model's context gets finish reason `prompt_too_long`,
        its token count and an empty text, so one such prompt costs no run. Raises EngineFailed when vLLM cannot start
        or ends midway. An iterator that is closed early gives up what is running.
        """
        assert not self._closed, "a closed engine may not be used again"
        assert not self._generating, "one generation at a time: finish or close the iterator first"
        self._generating = True
        running: dict[str, str] = {}
        try:
            yield from self._stream(iter(requests), running)
        finally:
            self._generating = False
            if running and self._vllm is not None:
                # A dead engine has nothing to give up, and its own error is already on the way.
                with suppress(Exception):
                    self._vllm.abort_request(list(running))

    def close(self) -> None:
        """Free the model: ends vLLM's processes. A closed engine may not be used again."""
        self._closed = True
        if self._vllm is not None:
            engine, self._vllm, self._tokenizer = self._vllm, None, None
            stop_vllm(engine)
            del engine
            gc.collect()
        self._drop_log()

    def _stream(self, requests: Iterator[Request], running: dict[str, str]) -> Iterator[Completion]:
        limit = _HELD_FACTOR * self.config.max_concurrent
        exhausted = False
        started: float | None = None
        before = self.stats.generating_s
        while True:
            finished: list[Completion] = []
            while not exhausted and len(running) < limit:
                request = next(requests, None)
                if request is None:
                    exhausted = True
                    break
                if self._vllm is None:
                    self._load()
                started = started or time.perf_counter()
                refusal = self._submit(request, running)
                if refusal is not None:
                    finished.append(refusal)
                    break
            if running:
                finished += self._step(running)
            if finished:
                self._count(finished, before + time.perf_counter() - (started or 0.0))
                yield from finished
            elif exhausted and not running:
                return

    def _submit(self, request: Request, running: dict[str, str]) -> Completion | None:
        """None once the request runs; a completion at once when its prompt is too long."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        config = self.config
        tokens = self._tokenise(request.prompt)
        if len(tokens) + config.max_new_tokens > self._vllm.model_config.max_model_len:
            return Completion(request.request_key, "", PROMPT_TOO_LONG, tokens_in=len(tokens), tokens_out=0)
        params = SamplingParams(
            temperature=config.temperature,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            seed=config.seed if config.temperature > 0 else None,
            max_tokens=config.max_new_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # Not the request key: one text may be asked for twice in a run.
        request_id = str(next(self._ids))
        try:
            self._vllm.add_request(request_id, tokens_input(tokens), params)
        except Exception as error:
            raise self._failure("generate", error) from error
        running[request_id] = request.request_key
        return None

    def _tokenise(self, prompt: str) -> list[int]:
        if not self._chat:
            ids: list[int] = self._tokenizer.encode(prompt)
            return ids
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            **self.config.chat_template_kwargs,
        )
        # The template writes the special tokens itself; adding them again would begin the prompt twice.
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _step(self, running: dict[str, str]) -> list[Completion]:
        try:
            outputs = self._vllm.step()
        except Exception as error:
            raise self._failure("generate", error) from error
        completions = []
        for output in outputs:
            if output.finished:
                answer = output.outputs[0]
                completions.append(
                    Completion(
                        request_key=running.pop(output.request_id),
                        text=answer.text,
                        finish_reason=answer.finish_reason,
                        tokens_in=len(output.prompt_token_ids),
                        tokens_out=len(answer.token_ids),
                    )
                )
        return completions

    def _count(self, finished: list[Completion], generating_s: float) -> None:
        done = self.stats
        self.stats = replace(
            done,
            finished=done.finished + len(finished),
            too_long=done.too_long + sum(c.finish_reason == PROMPT_TOO_LONG for c in finished),
            tokens_in=done.tokens_in + sum(c.tokens_in for c in finished),
            tokens_out=done.tokens_out + sum(c.tokens_out for c in finished),
            generating_s=generating_s,
        )
        if self._on_progress:
            self._on_progress(self.stats)

    def _load(self) -> None:
        started = time.perf_counter()
        self._log_folder = Path(tempfile.mkdtemp(prefix="lorestream-vllm-"))
        try:
            self._vllm = start_vllm(self.config, self.info.path, self._log_folder / "vllm.log")
        except Exception as error:
            raise self._failure("start", error) from error
        self._tokenizer = self._vllm.get_tokenizer()
        room = self._vllm.model_config.max_model_len
        if self.config.max_new_tokens >= room:
            self.close()
            raise ConfigError(
                f"engine.kv_cache_gib = {self.config.kv_cache_gib} holds a context of {room} tokens of "
                f"`{self.model}`, which leaves no room for max_new_tokens = {self.config.max_new_tokens}. "
                "Raise the cache, or ask for shorter answers."
            )
        self.stats = replace(self.stats, load_s=time.perf_counter() - started)

    def _failure(self, stage: Literal["start", "generate"], error: Exception) -> EngineFailed:
        log = self._log_folder / "vllm.log" if self._log_folder else None
        cause = (killed_by(self._vllm) if self._vllm is not None else None) or cause_of(error, log)
        # The message points to the log, so it outlives the engine.
        self._log_folder = None
        if stage == "start":
            remedy = (
                "If memory is short, lower engine.kv_cache_gib, engine.max_concurrent or engine.max_model_len "
                "(on a GPU engine.gpu_memory_utilization), or take a smaller model."
            )
        else:
            remedy = (
                "Finished texts are kept; run again for the rest, with less engine.max_concurrent if memory ran out."
            )
        return EngineFailed(self.model, stage, cause, f"{remedy} vLLM's own log: {log}")

    def _drop_log(self) -> None:
        if self._log_folder is not None:
            shutil.rmtree(self._log_folder, ignore_errors=True)
            self._log_folder = None


def _uses_chat(config: EngineConfig, info: ModelInfo) -> bool:
    if config.chat and not info.has_chat_template:
        raise ConfigError(
            f"engine.chat = true, but `{info.name}` has no chat template. Leave `chat` out, or add a "
            "chat_template.jinja to the model's folder."
        )
    chat = info.has_chat_template if config.chat is None else config.chat
    if config.chat_template_kwargs and not chat:
        raise ConfigError(
            f"engine.chat_template_kwargs = {config.chat_template_kwargs}, but `{info.name}` has no chat template. "
            "Leave it out."
        )
    return chat


def _check_context(config: EngineConfig, info: ModelInfo) -> None:
    context = info.context_length
    if context is not None and config.max_new_tokens >= context:
        raise ConfigError(
            f"engine.max_new_tokens = {config.max_new_tokens} leaves no room for a prompt: the context of "
            f"`{info.name}` is {context} tokens. Ask for shorter answers."
        )
