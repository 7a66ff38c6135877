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
from typing import TYPE_CHECKING, Any, Literal

from augment.engine.base import Completion, Request, sampling_of_attempt
from augment.engine.config import EngineConfig
from augment.engine.errors import EngineFailed
from augment.engine.launch import cause_of, killed_by, start_vllm, stop_vllm
from augment.engine.model import ModelInfo, describe_model
from augment.speculation.config import GROUP, SpeculationConfig, check_sampling
from warehouse.errors import ConfigError, LorestreamError

if TYPE_CHECKING:
    from augment.speculation.pool import PoolIdentity

__all__ = ["PROMPT_TOO_LONG", "EngineConfig", "EngineStats", "SpeculationConfig", "VllmEngine"]

PROMPT_TOO_LONG = "prompt_too_long"

# Requests held inside vLLM for each one that may run: enough that a freed slot never stays empty for a step, few enough
# that memory does not grow with the run.
_HELD_FACTOR = 2


@dataclass(frozen=True)
class EngineStats:
    """Progress of an engine over all its calls so far.

    `generating_s` runs from the first request to the last completion of every call; loading (`load_s`) is apart.
    `drafted`, `accepted`, `relaxed` and `steps` are sums over completions, as they count them.
    """

    finished: int = 0
    too_long: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    load_s: float = 0.0
    generating_s: float = 0.0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    steps: int = 0

    @property
    def tokens_per_step(self) -> float | None:
        """Output tokens per decoding step of a request, its first token (which the prompt gives) aside; None before
        there are any, and without speculation."""
        texts = self.finished - self.too_long
        return (self.tokens_out - texts) / self.steps if self.steps else None

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of generating, 0 before there are any."""
        return self.tokens_out / self.generating_s if self.generating_s > 0 else 0.0


class VllmEngine:
    """A local model, loaded once and used by all stages of a run.

    Building it reads a few files and raises ConfigError or InputError for a model that cannot be used as configured.
    vLLM runs in a process of its own unless VLLM_ENABLE_V1_MULTIPROCESSING=0, so that closing it gives all memory back
    and the rest of the program keeps its threads; a script that uses it needs the usual `if __name__ == "__main__"`.

    `speculation` (None: off) drafts from the pool given to `draft_from`, from the request's own prompt and text, and,
    unless it is frozen, from texts that were finished before.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[EngineStats], None] | None = None,
        *,
        speculation: SpeculationConfig | None = None,
    ) -> None:
        self.config = config
        self.speculation = speculation or SpeculationConfig(mode="off")
        check_sampling(self.speculation, config.temperature)
        self.info: ModelInfo = describe_model(config.model)
        self._pool: Path | None = None
        self.pool_id: str | None = None
        self._chat = _uses_chat(config, self.info)
        _check_context(config, self.info)
        self._on_progress = on_progress
        self._vllm: Any = None
        self._tokenizer: Any = None
        self._log_folder: Path | None = None
        self._closed = False
        self._generating = False
        self._ids = count()
        self.step_seconds: dict[int, float] = {}
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
    def verification(self) -> str:
        """`strict`, or the relaxed rule with its guards; enters every request key."""
        return self.speculation.verification

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

    def draft_from(self, pool: Path, identity: "PoolIdentity") -> None:
        """Draft from the saved `pool` from the next call on, if at all. Raises what RetrievalPool.load does."""
        if self.speculation.mode == "off":
            return
        from augment.speculation.pool import RetrievalPool

        # Here already, before a model is loaded for nothing, and by its own error.
        self.pool_id, self._pool = RetrievalPool.load(pool, identity).digest, pool
        if self._vllm is not None:
            try:
                self._vllm.collective_rpc("speculation_exchange", args=(str(pool),))
            except Exception as error:
                raise self._failure("generate", error) from error

    def speculation_totals(self) -> dict[str, float]:
        """What speculation did since the model was loaded (`augment.speculation.proposer.Totals`), {} without it."""
        if self._vllm is None or self.speculation.mode == "off":
            return {}
        return _merged(self._vllm.collective_rpc("speculation_totals"))

    def speculation_summary(self) -> dict[str, object]:
        """What drafting did since the engine was made, in JSON's types; {} without it, or before there is a text.

        `retrieval_us` is per decoding step of a request, `share_of_step_time` all that the proposer took, and `speedup`
        an estimate: the measured steps against the time that as many tokens would take by plain steps of such batches.
        """
        totals = self.speculation_totals()
        if not totals or not self.stats.steps:
            return {}
        summary: dict[str, object] = {
            "verification": self.verification,
            "pool": self.pool_id,
            "drafted": self.stats.drafted,
            "accepted": self.stats.accepted,
            "relaxed": self.stats.relaxed,
            "steps": self.stats.steps,
            "tokens_per_step": round(self.stats.tokens_per_step or 0.0, 3),
            "retrieval_us": round(1e6 * totals["retrieval_s"] / max(totals["row_steps"], 1), 1),
        }
        if totals["timed_s"]:
            summary["share_of_step_time"] = round(totals["timed_proposing_s"] / totals["timed_s"], 4)
            if totals["plain_s"]:
                summary["speedup"] = round(totals["plain_s"] / totals["timed_s"], 2)
        return summary

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
        temperature, seed = sampling_of_attempt(config.temperature, config.seed, request.attempt)
        params = SamplingParams(
            temperature=temperature,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            seed=seed if temperature > 0 else None,
            max_tokens=config.max_new_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=None if request.group is None else {GROUP: request.group},
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
        ended = [output for output in outputs if output.finished]
        counts = self._draft_counts([output.request_id for output in ended])
        return [
            Completion(
                request_key=running.pop(output.request_id),
                text=output.outputs[0].text,
                finish_reason=output.outputs[0].finish_reason,
                tokens_in=len(output.prompt_token_ids),
                tokens_out=len(output.outputs[0].token_ids),
                **counts.get(output.request_id, {}),
            )
            for output in ended
        ]

    def _draft_counts(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """The fields of a Completion that speculation fills, by request."""
        if self.speculation.mode == "off" or not ids:
            return {}
        try:
            found = _merged(self._vllm.collective_rpc("speculation_counts", args=(ids,)))
        except Exception as error:
            raise self._failure("generate", error) from error
        names = ("drafted", "accepted", "relaxed", "steps")
        return {i: dict(zip(names, counts, strict=True), pool_id=self.pool_id) for i, counts in found.items()}

    def _count(self, finished: list[Completion], generating_s: float) -> None:
        done = self.stats
        self.stats = replace(
            done,
            finished=done.finished + len(finished),
            too_long=done.too_long + sum(c.finish_reason == PROMPT_TOO_LONG for c in finished),
            tokens_in=done.tokens_in + sum(c.tokens_in for c in finished),
            tokens_out=done.tokens_out + sum(c.tokens_out for c in finished),
            generating_s=generating_s,
            drafted=done.drafted + sum(c.drafted or 0 for c in finished),
            accepted=done.accepted + sum(c.accepted or 0 for c in finished),
            relaxed=done.relaxed + sum(c.relaxed or 0 for c in finished),
            steps=done.steps + sum(c.steps or 0 for c in finished),
        )
        if self._on_progress:
            self._on_progress(self.stats)

    def _load(self) -> None:
        started = time.perf_counter()
        self._log_folder = Path(tempfile.mkdtemp(prefix="lorestream-vllm-"))
        try:
            self._vllm = start_vllm(self.config, self.speculation, self.info.path, self._log_folder / "vllm.log")
        except LorestreamError:
            self._drop_log()
            raise
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
        if self._vllm.vllm_config.speculative_config is None:
            self.speculation, self.pool_id = SpeculationConfig(mode="off"), None
        else:
            try:
                self._install_speculation()
            except Exception as error:
                raise self._failure("start", error) from error
        self.stats = replace(self.stats, load_s=time.perf_counter() - started)

    def _install_speculation(self) -> None:
        classes = marks = None
        if self.speculation.exact:
            from augment.speculation.verification import token_classes

            bits, odd = token_classes(self._tokenizer, self._vllm.model_config.get_vocab_size())
            classes, marks = bits.tobytes(), odd.tobytes()
        pool = None if self._pool is None else str(self._pool)
        # What was not set must stay so: a mode refuses options that it has no use for.
        config = self.speculation.model_dump(mode="json", exclude_unset=True)
        arguments = (config, pool, classes, marks)
        installed = _merged(self._vllm.collective_rpc("speculation_install", args=arguments))
        self.step_seconds = {int(n): s for n, s in installed["step_seconds"].items()}

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


def _merged(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of the workers that had one: all of a tensor-parallel group say the same, other stages nothing."""
    return next((answer for answer in answers if answer), {})


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
