"""What is read of a model folder: identity, special tokens, template, and errors that name the remedy."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from augment.engine import model as module
from augment.engine.model import describe_model
from warehouse.errors import InputError

CONFIG = {"model_type": "qwen3", "max_position_embeddings": 2048, "hidden_size": 8}
TOKENIZER = {
    "model": {"type": "BPE"},
    "added_tokens": [
        {"content": "<|im_start|>", "special": True},
        {"content": "<|im_end|>", "special": True},
        {"content": "not special", "special": False},
    ],
}
TOKENIZER_CONFIG = {
    "eos_token": "<|im_end|>",
    "bos_token": None,
    "pad_token": {"content": "<pad>", "lstrip": False},
    "additional_special_tokens": ["<|tool|>"],
    "model_max_length": 1e30,
}


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header, offset = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    blob = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + b"".join(tensors.values()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tiny-model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    (made / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (made / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    write_safetensors(made / "model.safetensors", {"a": bytes(5000), "b": bytes(5000)})
    return made


def test_a_folder_is_described_without_its_path_in_the_name(folder: Path) -> None:
    info = describe_model(str(folder))
    assert info.name == "tiny-model"
    assert info.path == folder
    assert info.context_length == 2048
    assert info.special_tokens == ("<pad>", "<|im_end|>", "<|im_start|>", "<|tool|>")
    assert not info.has_chat_template


def test_a_relative_path_gets_the_folders_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert describe_model(".").name == "tiny-model"


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_found_in_either_place(folder: Path, place: str) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text = json.dumps({**TOKENIZER_CONFIG, "chat_template": template}) if place.endswith("json") else template
    (folder / place).write_text(text)
    assert describe_model(str(folder)).has_chat_template


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}{% break %}{% endfor %}", "{% generation %}{{ messages[0].content }}{% endgeneration %}"],
)
def test_what_transformers_adds_to_jinja_is_allowed_in_a_chat_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    assert describe_model(str(folder)).has_chat_template


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("chat_template.jinja", b"{% if %}"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.json", json.dumps({"chat_template": "{{ messages"}).encode()),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "x", "template": "{% if %}"}]}).encode()),
    ],
)
def test_a_chat_template_that_does_not_parse_is_refused(folder: Path, place: str, content: bytes) -> None:
    (folder / place).write_bytes(content)
    with pytest.raises(InputError, match=r"chat template of the model in .*tiny-model"):
        describe_model(str(folder))


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"added_tokens": []}, {"model": 5, "added_tokens": {}}])
def test_a_tokenizer_without_content_is_refused(folder: Path, content: dict[str, object]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"no usable tokenizer: .*tokenizer\.json"):
        describe_model(str(folder))


def test_the_revision_is_that_of_the_content_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "tiny-model"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("about this copy")
    assert describe_model(str(copy)).revision == describe_model(str(folder)).revision


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_the_revision_follows_every_file_that_matters(folder: Path, file: str) -> None:
    before = describe_model(str(folder)).revision
    content = bytearray((folder / file).read_bytes())
    # Inside the last string or weight, so that JSON stays JSON and sizes stay the same.
    position = len(content) - 3 if file == "model.safetensors" else content.rindex(b"m")
    content[position] ^= 1
    (folder / file).write_bytes(content)
    assert describe_model(str(folder)).revision != before


def test_a_large_file_is_sampled_and_still_tells_a_changed_tensor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of a sampled file stay far below its size, and a change of any one tensor is another revision."""
    monkeypatch.setattr(module, "_WHOLE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(module, "_CHUNKS", 4)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 1 << 10)
    size = 100_000
    tensors = {f"layer.{i}": bytes([i]) * size for i in range(30)}
    file = folder / "model.safetensors"
    write_safetensors(file, tensors)
    with file.open("rb") as stream:
        parts = module._samples(stream, file, file.stat().st_size)
    assert sum(length for _, length in parts) < file.stat().st_size / 10
    revisions = {describe_model(str(folder)).revision}
    for name in ("layer.0", "layer.13", "layer.29"):
        write_safetensors(file, {**tensors, name: b"\xff" * size})
        revisions.add(describe_model(str(folder)).revision)
    assert len(revisions) == 4


def test_a_path_that_does_not_exist_is_named_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"/no/such/model.*Give the path of a folder") as caught:
        describe_model("/no/such/model")
    assert caught.value.exit_code == 2


def test_an_unknown_hub_id_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"nobody/nothing.*hf download nobody/nothing"):
        describe_model("nobody/nothing")


def test_a_cached_hub_id_is_found_offline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    commit = "0" * 40
    repo = cache / "models--maker--tiny-model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    info = describe_model("maker/tiny-model")
    assert (info.name, info.revision) == ("tiny-model", describe_model(str(folder)).revision)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(InputError, match="is a file"):
        describe_model(str(folder / "config.json"))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_refused_by_what_it_lacks(folder: Path, file: str, words: str) -> None:
    (folder / file).unlink()
    with pytest.raises(InputError, match=words):
        describe_model(str(folder))


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        describe_model(str(folder))
