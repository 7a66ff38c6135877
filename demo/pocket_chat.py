"""The pocket LLM asked through plain transformers: greedy answers, nothing fetched from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Answer:
    """Text and number of tokens of one answer; `ended` is False where it ran into the limit."""

    text: str
    tokens: int
    ended: bool


class PocketChat:
    """The model in a folder, asked through plain transformers, greedily; nothing is fetched from anywhere."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def ask(self, prompts: Sequence[str], batch: int = 64) -> list[Answer]:
        """One answer per prompt, in order."""
        answers: list[Answer] = []
        end = self._tokenizer.eos_token_id
        for start in range(0, len(prompts), batch):
            turns = [
                self._tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts[start : start + batch]
            ]
            inputs = self._tokenizer(turns, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.inference_mode():
                out = self._model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=MAX_NEW_TOKENS,
                    do_sample=False,
                )
            for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
                said = ids[: ids.index(end)] if end in ids else ids
                answers.append(Answer(self._tokenizer.decode(said), len(said), end in ids))
        return answers
