"""The pocket LLM's tokenizer: byte-level BPE, ChatML turns, and whole titles and constant prompt parts as one token.

The model has three million weights and learns in minutes. One token per title lets it keep what it knows about a movie
in that token's embedding; one token per constant part of a prompt leaves the computing to what differs. Any other text
still encodes, as words and bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import orjson
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.lessons import Lesson

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MAX_VOCABULARY = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A quoted title; a rating with its separator; a word with the blank before it; other signs; blanks.
_PIECES = r'"[^"\n]+"| \(\d stars?\)(?:; )?| ?\w+| ?[^\s\w"]+|\s'


def chat(lesson: Lesson) -> tuple[str, str]:
    """A lesson as the chat template writes it: what the model is given, and what it should say with the end of turn."""
    given = f"{TURN_START}user\n{lesson.prompt}{TURN_END}\n{TURN_START}assistant\n"
    return given, lesson.answer + TURN_END


def constant_parts(prompts: Sequence[str]) -> list[str]:
    """What all prompts of one kind begin and end with, from the first quoted title and to the last fence or line."""
    first, last = min(prompts), max(prompts)
    head = _common_prefix(first, last)
    tail = _common_prefix(first[::-1], last[::-1])[::-1]
    # A title's quotation mark belongs to the title; the closing fence begins a line.
    return [head[: head.rindex("\n") + 1], tail[tail.index("<") :]]


def _common_prefix(a: str, b: str) -> str:
    length = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:length]


def train_tokenizer(lessons: Sequence[Lesson], constants: Sequence[str]) -> Tokenizer:
    """A tokenizer of these lessons, deterministic in them; `constants` become one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(constants),
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = []
    for lesson in lessons:
        text = "".join(chat(lesson))
        for part in (*constants, *SPECIAL_TOKENS):
            text = text.replace(part, " ")
        texts.append(text)
    # The constants' words too, so that a reworded prompt is words rather than bytes.
    tokenizer.train_from_iterator([*texts, *constants], trainer)
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in constants])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as AutoTokenizer and vLLM read them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": 2048,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(config, option=orjson.OPT_INDENT_2) + b"\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
