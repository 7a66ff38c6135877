"""The table of DESIGN section 1: which room may import what, inside functions as well as at the top."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorestream

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "vllm", "apache_beam", "prefect"}
OURS = {"warehouse", "prompts", "augment", "adapters", "flows", "demo", "benchmarks", "tests", "lorestream"}

# room: what of ours it may import beside itself, and what of others it must not.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "warehouse": (set(), HEAVY),
    "prompts": ({"warehouse"}, {"torch", "vllm"}),
    "augment": ({"warehouse", "prompts"}, {"prefect"}),
    "adapters": ({"warehouse"}, {"prefect", "vllm"}),
    "flows": ({"warehouse", "prompts", "augment", "adapters", "demo", "lorestream"}, set()),
    "demo": ({"warehouse", "prompts", "augment", "adapters", "flows", "lorestream"}, set()),
}
# `Frame.to_torch` gives tensors to whoever has torch; tests/warehouse/test_reader.py reads without it.
LAZY = {("warehouse/frame.py", "torch")}


def imports(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Each imported top-level package, and whether only a function or a type checker imports it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0], lazy
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from ((str(a.value).split(".")[0], lazy) for a in node.args if isinstance(a, ast.Constant))
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        yield from imports(node, lazy or typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def violations(room: str, name: str, source: str) -> list[str]:
    friends, forbidden = ROOMS[room]
    return [
        f"{name} imports {package}"
        for package, lazy in imports(ast.parse(source))
        if package in (OURS - friends - {room}) | forbidden and not (lazy and (name, package) in LAZY)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_design_allows(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    assert [v for f in files for v in violations(room, f.relative_to(ROOT).as_posix(), f.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.nn as nn",
        "from vllm import LLM",
        "def f():\n    import apache_beam",
        "if True:\n    from prefect import flow",
        "from prompts.render import render",
        "import importlib\nx = importlib.import_module('torch')",
        "from lorestream import open",
    ],
)
def test_a_forbidden_import_is_found_wherever_it_hides(source: str) -> None:
    assert violations("warehouse", "warehouse/new.py", source)


def test_torch_is_allowed_to_frames_only_where_it_is_asked_for() -> None:
    assert violations("warehouse", "warehouse/frame.py", "import torch")
    assert not violations("warehouse", "warehouse/frame.py", "def to_torch():\n    import torch")
    assert not violations("warehouse", "warehouse/store.py", "import pyarrow\nfrom warehouse.keys import digest")


def test_every_public_name_is_there() -> None:
    assert dir(lorestream) == sorted(lorestream.__all__)
    for name in lorestream.__all__:
        assert getattr(lorestream, name).__name__ == name
    with pytest.raises(AttributeError, match=r"no attribute 'nope'; it has .*HybridExpertAdapter"):
        lorestream.nope  # noqa: B018


def test_a_data_folder_named_warehouse_does_not_hide_the_package(tmp_path: Path) -> None:
    """The reader's script stands beside the data, in a folder that is called as ours is."""
    (tmp_path / "warehouse").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import lorestream; print(lorestream.open.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "warehouse.reader\n", done.stderr
