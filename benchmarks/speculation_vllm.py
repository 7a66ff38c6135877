"""Tokens/s of generation with and without speculation, inside vLLM, by the number of concurrent requests.

    python benchmarks/speculation_vllm.py [--json] [--quick] [--model standin|inflated|both] [--arms ARM ...]
                                          [--concurrency N ...] [--repeats N] [--new-tokens N] [--pool-texts N]

Needs `../shared` (a model trained on real LLM knowledge, and the prompts it was written for). The model runs as it is,
and inflated to half a billion parameters (`inflate.py`): the same text at the cost of a real model.

Arms: off, vLLM's n-gram, Arctic's suffix decoding (where `arctic_inference` is installed), ours lossless, ours relaxed.
Every arm runs in a process of its own, arms in turns, and all get the same: the texts that the model wrote for separate
prompts (the pool of ours, the cache of suffix), then a few separate prompts to warm up. Prompts name titles and none
comes twice in a run, so no drafter can quote an answer to the same question. All see each other's finished texts as
they do in production. Rates are medians over repeats with their smallest and largest; ratios are to `off` in the same
repeat.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import BaseModel

SHARED = Path(__file__).parents[1].parent / "shared"
STANDIN = SHARED / "models" / "knowledge-standin"
KNOWLEDGE = ("ml-1m-collective", "amazon-books-collective")

ARMS = ("off", "ngram", "suffix", "lossless", "relaxed")
# N-gram as tuned in the literature (longer drafts only lose more in batches); suffix decoding at vLLM's own defaults,
# of which the longest draft is the depth of its tree.
PEERS: Mapping[str, Mapping[str, object]] = {
    "ngram": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 5},
    "suffix": {"method": "suffix", "num_speculative_tokens": 24},
}
# Requests by concurrency where they are not twice as many: fewer and a level is mostly its own end, with few at work.
REQUESTS = {1: 3, 2: 6}
WARMING = 8
NO_TITLES = re.compile(r"consisting of\s*,")


class Job(BaseModel, frozen=True, extra="forbid"):
    """What one child process runs: `levels` are (concurrent requests, prompts), `warm` (prompt, tokens of its text)."""

    arm: str
    model: Path
    levels: list[tuple[int, list[str]]]
    warming: list[str]
    warm: list[tuple[str, list[int]]]
    pool: Path | None
    new_tokens: int
    dtype: Literal["bfloat16", "float32"]
    kv_cache_gib: float


def prompts(seed: int = 7) -> list[str]:
    """Every prompt that names titles and was asked once, shuffled."""
    texts = [
        p for name in KNOWLEDGE for p in pq.read_table(SHARED / "data" / "knowledge" / f"{name}.parquet")["prompt"]
    ]
    asked = [text.as_py() for text in texts]
    once = sorted({p for p in asked if asked.count(p) == 1 and not NO_TITLES.search(p)})
    random.Random(seed).shuffle(once)
    return once


def templated(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt in the model's chat template."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


class Bench:
    """A vLLM engine of one arm, with requests counted in and out."""

    def __init__(self, job: Job, log: Path) -> None:
        from augment.engine.config import EngineConfig
        from augment.engine.launch import start_vllm
        from augment.speculation.config import SpeculationConfig

        ours = job.arm in ("lossless", "relaxed")
        speculation = SpeculationConfig.model_validate({"mode": job.arm if ours else "off"})
        further: dict[str, object] = {}
        if job.arm in PEERS:
            further["speculative_config"] = dict(PEERS[job.arm])
        if job.arm != "off":
            further["per_request_spec_decode_metrics"] = "summary"
        config = EngineConfig(
            model=str(job.model),
            max_new_tokens=job.new_tokens,
            max_model_len=1024,
            max_concurrent=max(level for level, _ in job.levels),
            kv_cache_gib=job.kv_cache_gib,
            dtype=job.dtype,
        )
        self._engine = start_vllm(config, speculation, job.model, log, further)
        self._tokenizer = self._engine.get_tokenizer()
        self._job, self._names = job, iter(range(1 << 30))
        self._step_seconds: dict[int, float] = {}
        if ours:
            pool = None if job.pool is None else str(job.pool)
            given = speculation.model_dump(mode="json", exclude_unset=True)
            (measured,) = self._engine.collective_rpc("speculation_install", args=(given, pool, None, None))
            self._step_seconds = {int(tokens): seconds for tokens, seconds in measured["step_seconds"].items()}
        if job.arm == "suffix":
            self._engine.collective_rpc(
                fill_suffix_cache, args=([(templated(self._tokenizer, p), t) for p, t in job.warm],)
            )

    def answer(self, asked: Sequence[str], concurrency: int) -> Iterator[tuple[str, Any]]:
        """(prompt, vLLM's output) as they finish; always `concurrency` requests at work while there are as many."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0.0, max_tokens=self._job.new_tokens, output_kind=RequestOutputKind.FINAL_ONLY
        )
        waiting, running = list(asked)[::-1], dict[str, str]()
        while waiting or running:
            while waiting and len(running) < concurrency:
                name = str(next(self._names))
                running[name] = waiting.pop()
                tokens = templated(self._tokenizer, running[name])
                self._engine.add_request(name, tokens_input(tokens), params.clone())
            for output in self._engine.step():
                if output.finished:
                    yield running.pop(output.request_id), output.outputs[0]

    def totals(self) -> dict[str, float]:
        """The totals of our proposer; {} in other arms."""
        if self._job.arm not in ("lossless", "relaxed"):
            return {}
        (totals,) = self._engine.collective_rpc("speculation_totals")
        return dict(totals)

    def breakdown(self, spent: Mapping[str, float], seconds: float) -> dict[str, float] | None:
        """Where the time of a level went: shares of it, and milliseconds of an average step that only decoded.

        `forward` is the model's forward pass over as many tokens without context, from the table measured at start;
        `rest` is attention over the context, verification, the scheduler and vLLM's own work between steps.
        """
        if not spent or not spent["timed_steps"]:
            return None
        import numpy as np

        steps = spent["timed_steps"]
        tokens = spent["timed_tokens"] / steps
        known = sorted(self._step_seconds.items())
        forward = float(np.interp(tokens, [n for n, _ in known], [s for _, s in known]))
        step, proposing = spent["timed_s"] / steps, spent["timed_proposing_s"] / steps
        return {
            "reading_prompts_share": round(1 - spent["timed_s"] / seconds, 4),
            "tokens_read_per_step": round(tokens, 1),
            "step_ms": round(1e3 * step, 1),
            "forward_ms": round(1e3 * forward, 1),
            "proposing_ms": round(1e3 * proposing, 2),
            "rest_ms": round(1e3 * (step - forward - proposing), 1),
        }

    def relaxed(self) -> int:
        """Tokens that only relaxed verification let pass, of the texts since the last call."""
        if self._job.arm != "relaxed":
            return 0
        (counts,) = self._engine.collective_rpc(
            "speculation_counts", args=([str(n) for n in range(next(self._names))],)
        )
        return sum(relaxed for _drafted, _accepted, relaxed, _steps in counts.values())


def fill_suffix_cache(worker: Any, texts: Sequence[tuple[list[int], list[int]]]) -> None:
    """Let vLLM's suffix proposer have seen these (prompt, text) pairs, as if it had served them."""
    import numpy as np

    cache = worker.model_runner.drafter.suffix_cache
    for number, (prompt, text) in enumerate(texts):
        cache.start_request(f"warm-{number}", np.asarray(prompt, np.int32))
        cache.add_active_response(f"warm-{number}", text)
        cache.stop_request(f"warm-{number}")


def run_child(job: Job) -> dict[str, Any]:
    """Figures and texts of one arm at every level."""
    with tempfile.TemporaryDirectory(prefix="lorestream-bench-") as folder:
        bench = Bench(job, Path(folder, "vllm.log"))
        for _ in bench.answer(job.warming, len(job.warming)):
            pass
        bench.relaxed()
        levels = {}
        for concurrency, asked in job.levels:
            before = bench.totals()
            began = time.perf_counter()
            done = list(bench.answer(asked, concurrency))
            seconds = time.perf_counter() - began
            after = bench.totals()
            tokens = sum(len(answer.token_ids) for _, answer in done)
            metrics = [answer.spec_decode_metrics for _, answer in done if answer.spec_decode_metrics is not None]
            accepted = sum(j * times for m in metrics for j, times in enumerate(m.histogram))
            spent = {key: after[key] - before[key] for key in after}
            levels[str(concurrency)] = {
                "tokens_per_s": tokens / seconds,
                "tokens": tokens,
                "tokens_per_step": (tokens - len(done)) / max(tokens - len(done) - accepted, 1),
                "drafted_per_step": sum(m.num_draft_tokens for m in metrics) / max(tokens - len(done) - accepted, 1),
                "relaxed_share": bench.relaxed() / tokens,
                "retrieval_us_per_row": 1e6 * spent["retrieval_s"] / max(spent["row_steps"], 1) if spent else None,
                "share_of_step": spent["proposing_s"] / seconds if spent else None,
                "breakdown": bench.breakdown(spent, seconds),
                "texts": {prompt: list(answer.token_ids) for prompt, answer in done},
            }
        return levels


def write_texts(asked: Sequence[str], new_tokens: int, dtype: str) -> list[tuple[str, list[int]]]:
    """(prompt, tokens of the text) that the small model writes for the pool's prompts; the inflated one's are equal."""
    levels = [(64, list(asked))]
    job = Job(
        arm="off", model=STANDIN, levels=levels, warming=[], warm=[], pool=None,
        new_tokens=new_tokens, dtype=dtype, kv_cache_gib=1.0,
    )  # fmt: skip
    texts = in_child(job)["64"]["texts"]
    return [(prompt, texts[prompt]) for prompt in asked]


def in_child(job: Job) -> dict[str, Any]:
    """`run_child` in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="lorestream-bench-") as folder:
        file, out = Path(folder, "job.json"), Path(folder, "out.json")
        file.write_text(job.model_dump_json())
        root = Path(__file__).parents[1]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
            # In one process, so that vLLM's scheduler never waits for a submission.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        command = [sys.executable, __file__, "--child", str(file), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"The arm {job.arm} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def build_pool(texts: Sequence[tuple[str, list[int]]], path: Path) -> Path:
    """The retrieval pool of these (prompt, tokens of its text), saved."""
    from transformers import AutoTokenizer

    from augment.speculation.pool import RetrievalPool

    tokenizer = AutoTokenizer.from_pretrained(STANDIN, local_files_only=True)
    asked = [templated(tokenizer, prompt) for prompt, _ in texts]
    answers = [tokens[:-1] if tokens[-1] == tokenizer.eos_token_id else tokens for _, tokens in texts]
    RetrievalPool.build(answers, prompts=asked).save(path)
    return path


def summary(runs: Sequence[Mapping[str, Mapping[str, Any]]], level: str) -> dict[str, dict[str, Any]]:
    """Figures by arm at one level; `runs` are repeats of arm -> level -> figures."""
    figures: dict[str, dict[str, Any]] = {}
    for arm in runs[0]:
        levels = [run[arm][level] for run in runs]
        rates = [one["tokens_per_s"] for one in levels]
        row: dict[str, Any] = {
            "tokens_per_s": round(median(rates), 1),
            "least": round(min(rates), 1),
            "most": round(max(rates), 1),
        }
        if "off" in runs[0]:
            ratios = [run[arm][level]["tokens_per_s"] / run["off"][level]["tokens_per_s"] for run in runs]
            row |= {
                "ratio_to_off": round(median(ratios), 3),
                "ratio_least": round(min(ratios), 3),
                "ratio_most": round(max(ratios), 3),
                "texts_equal_to_off": round(same(runs[0][arm][level]["texts"], runs[0]["off"][level]["texts"]), 3),
            }
        for key in ("tokens_per_step", "drafted_per_step", "relaxed_share", "retrieval_us_per_row", "share_of_step"):
            values = [one[key] for one in levels if one[key] is not None]
            row[key] = round(median(values), 4) if values else None
        row["breakdown"] = levels[0]["breakdown"]
        figures[arm] = row
    return figures


def same(a: Mapping[str, list[int]], b: Mapping[str, list[int]]) -> float:
    """The share of equal texts."""
    return sum(a[prompt] == b[prompt] for prompt in b) / len(b)


def measure(name: str, model: Path, given: argparse.Namespace, scratch: Path, found: dict[str, Any]) -> None:
    """Fill `found[name]` with the figures of one model, level by level."""
    asked = prompts()
    levels = []
    for concurrency in given.concurrency:
        count = max(concurrency, REQUESTS.get(concurrency, 2 * concurrency)) if not given.quick else 2 * concurrency
        levels.append((concurrency, [asked.pop() for _ in range(count)]))
    warming = [asked.pop() for _ in range(WARMING)]
    texts = write_texts(asked[: given.pool_texts], given.new_tokens, given.dtype)
    pool = build_pool(texts, scratch / f"pool-{name}") if {"lossless", "relaxed"} & set(given.arms) else None
    runs: list[dict[str, dict[str, Any]]] = []
    for repeat in range(given.repeats):
        runs.append({})
        for arm in given.arms:
            job = Job(
                arm=arm, model=model, levels=levels, warming=warming, warm=texts, pool=pool,
                new_tokens=given.new_tokens, dtype=given.dtype, kv_cache_gib=given.kv_cache_gib,
            )  # fmt: skip
            runs[-1][arm] = in_child(job)
            rates = {level: round(one["tokens_per_s"], 1) for level, one in runs[-1][arm].items()}
            print(f"{name}, repeat {repeat + 1}, {arm}: {rates} tokens/s", file=sys.stderr)
    found[name] = {
        "pool_texts": len(texts),
        "pool_tokens": sum(len(tokens) for _, tokens in texts),
        "levels": {str(concurrency): summary(runs, str(concurrency)) for concurrency, _ in levels},
    }


def show(found: Mapping[str, Any]) -> None:
    """Print tables."""
    for name in ("standin", "inflated"):
        if name not in found:
            continue
        print(f"\n{name}: pool of {found[name]['pool_texts']} texts, {found[name]['pool_tokens']} tokens")
        print(f"{'at once':>7} {'arm':9} {'tok/s':>8} {'least-most':>17} {'x off':>6} {'tok/step':>8} {'equal':>6}")
        for level, arms in found[name]["levels"].items():
            for arm, row in arms.items():
                print(
                    f"{level:>7} {arm:9} {row['tokens_per_s']:>8} {row['least']:>8}-{row['most']:<8} "
                    f"{row.get('ratio_to_off', ''):>6} {row['tokens_per_step']:>8} "
                    f"{row.get('texts_equal_to_off', ''):>6}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="the small model, few requests, one repeat: does it run?")
    parser.add_argument("--model", choices=("standin", "inflated", "both"), default="both")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 8, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--pool-texts", type=int, default=16, help="texts that the pool and suffix's cache begin with")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--kv-cache-gib", type=float, default=2.0)
    parser.add_argument("--scratch", type=Path, help="where the inflated model lies, or is put (default: temporary)")
    parser.add_argument("--child", nargs=2, metavar=("JOB", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        job = Job.model_validate_json(Path(given.child[0]).read_text())
        Path(given.child[1]).write_text(json.dumps(run_child(job)))
        return
    if not STANDIN.is_dir():
        raise SystemExit(f"There is no {STANDIN}: this benchmark needs the shared evaluation model and prompts.")
    if given.quick:
        given.model, given.repeats, given.new_tokens, given.pool_texts = "standin", 1, min(given.new_tokens, 64), 24
        given.concurrency = [level for level in given.concurrency if level <= 4] or [4]
    if "suffix" in given.arms and find_spec("arctic_inference") is None:
        print("The arm suffix is left out: arctic_inference is not installed.", file=sys.stderr)
        given.arms.remove("suffix")
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "new_tokens": given.new_tokens,
        "dtype": given.dtype,
        "repeats": given.repeats,
    }
    with tempfile.TemporaryDirectory(prefix="lorestream-bench-") as temporary:
        scratch = given.scratch or Path(temporary)
        if given.model in ("standin", "both"):
            measure("standin", STANDIN, given, Path(temporary), found)
        if given.model in ("inflated", "both"):
            from inflate import Inflation, inflate

            model = scratch / "knowledge-standin-inflated"
            if not (model / "model.safetensors").exists():
                found["parameters"] = inflate(STANDIN, model, Inflation())
            measure("inflated", model, given, Path(temporary), found)
    if given.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
