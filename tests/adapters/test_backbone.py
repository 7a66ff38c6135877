import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from adapters.backbone import OUT_OF_VOCABULARY, PAD, CtrModel, _oldest_first
from adapters.config import Backbone, CtrConfig
from adapters.features import StoredKnowledge
from tests.adapters.worlds import World

BACKBONES: tuple[Backbone, ...] = get_args(Backbone)


def small(backbone: Backbone = "DeepFM") -> CtrConfig:
    return CtrConfig(backbone=backbone, embedding_dim=4, hidden=(8,))


def all_known(world: World) -> np.ndarray:
    return np.ones(len(world.samples.items), dtype=bool)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_reach_the_augment_vectors(world: World, backbone: Backbone) -> None:
    model = CtrModel(world.samples, all_known(world), small(backbone), knowledge_dim=6)
    knowledge = torch.randn(50, 6, requires_grad=True)
    model(torch.arange(50), knowledge).sum().backward()
    assert knowledge.grad is not None
    assert knowledge.grad.any()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_field_reaches_the_logit(world: World, backbone: Backbone) -> None:
    samples = world.samples
    model = CtrModel(samples, all_known(world), small(backbone)).eval()
    # A sample with a full history on both sides, and another item.
    row = int(np.flatnonzero((samples.liked > 0).all(1) & (samples.disliked > 0).all(1))[0])
    index = torch.tensor([row])
    before = float(model(index).detach())
    columns = {
        "item": (model.item, torch.tensor(model.item[row].item() % 7 + 2)),
        "category": (model.category, torch.tensor(int(model.category[row]) % 4 + 1)),
        "liked": (model.liked, model.liked[row].flip(0).roll(1) % 100 + 1),
        "disliked": (model.disliked, model.disliked[row] % 100 + 1),
    }
    if backbone == "DIEN":
        del columns["disliked"]
    for name, (column, other) in columns.items():
        kept = column[row].clone()
        assert not torch.equal(kept, other.to(kept.dtype)), name
        column[row] = other
        assert float(model(index).detach()) != before, name
        column[row] = kept
    assert float(model(index).detach()) == before


def test_unknown_and_masked_items_share_one_id(world: World) -> None:
    known = all_known(world)
    unknown = int(world.samples.item[0])
    known[unknown] = False
    model = CtrModel(world.samples, known, small()).eval()
    assert int(model.item[0]) == OUT_OF_VOCABULARY
    other = int(np.flatnonzero(world.samples.item != unknown)[0])
    index, masked = torch.tensor([other]), torch.tensor([True])
    shown, hidden = model(index), model(index, None, masked)
    assert not torch.equal(shown, hidden)
    model.item[other] = OUT_OF_VOCABULARY
    torch.testing.assert_close(model(index), hidden)


def test_an_unknown_item_says_nothing_as_history(world: World) -> None:
    samples = world.samples
    row = int(np.flatnonzero((samples.liked > 0).all(1))[0])
    known = all_known(world)
    known[samples.liked[row] - 1] = False
    model = CtrModel(samples, known, small())
    assert not model.history_tokens[model.liked[row].long()].any()


def test_history_without_events_is_padding(world: World) -> None:
    """What stands behind padding must not matter: the pad embedding may hold anything."""
    # DIEN reads an empty history as one event of padding, whose embedding it learns.
    for backbone in set(BACKBONES) - {"DIEN"}:
        model = CtrModel(world.samples, all_known(world), small(backbone)).eval()
        empty = torch.tensor([int(np.flatnonzero(~world.samples.liked.any(1) & ~world.samples.disliked.any(1))[0])])
        before = model(empty)
        with torch.no_grad():
            for module in model.net.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight[PAD] = 100.0
        torch.testing.assert_close(model(empty), before, msg=backbone)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_batch_without_any_history_has_logits(world: World, backbone: Backbone) -> None:
    empty = np.flatnonzero(~world.samples.liked.any(1) & ~world.samples.disliked.any(1))[:3]
    model = CtrModel(world.samples, all_known(world), small(backbone)).eval()
    assert torch.isfinite(model(torch.from_numpy(empty))).all()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_further_fields_reach_the_logit(world: World, backbone: Backbone) -> None:
    group = np.arange(len(world.samples)) % 3
    model = CtrModel(world.samples, all_known(world), small(backbone), fields={"group": group}).eval()
    index = torch.tensor([4])
    before = float(model(index).detach())
    model.fields["group"][4] = (group[4] + 1) % 3
    assert float(model(index).detach()) != before


def test_dien_reads_events_from_the_oldest_to_the_newest() -> None:
    newest_first = torch.tensor([[5, 4, 3], [9, 8, PAD], [PAD, PAD, PAD]])
    turned = _oldest_first(newest_first, torch.tensor([3, 2, 0]))
    assert turned.tolist() == [[3, 4, 5], [8, 9, PAD], [PAD, PAD, PAD]]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_batch_of_one_gives_what_a_larger_one_does(world: World, backbone: Backbone) -> None:
    model = CtrModel(world.samples, all_known(world), small(backbone)).eval()
    torch.testing.assert_close(model(torch.tensor([7])), model(torch.arange(10))[7:8])


def test_equal_seeds_give_equal_models_and_leave_the_callers_random_state(world: World) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = (CtrModel(world.samples, all_known(world), small()).eval() for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    index = torch.arange(20)
    assert torch.equal(first(index), second(index))
    other = CtrModel(world.samples, all_known(world), small().model_copy(update={"seed": 1})).eval()
    assert not torch.equal(first(index), other(index))


def test_missing_knowledge_is_zeros_and_a_flag() -> None:
    user, item = np.full((2, 3), 2.0, np.float32), np.full((2, 3), np.nan, np.float32)
    item[1] = 5.0
    knowledge = StoredKnowledge(user, item, np.array([True, True]), np.array([False, True]), "cpu")
    features = knowledge(torch.tensor([0, 1]))
    assert features.shape == (2, knowledge.dim)
    assert features[0].tolist() == [2, 2, 2, 0, 0, 0, 0, 1, 0]
    torch.testing.assert_close(features[1, 6], torch.tensor(30 / 3**0.5))


def test_the_library_is_loaded_without_looking_for_a_newer_version() -> None:
    """In a fresh interpreter, where any use of the network fails loudly."""
    script = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import threading\n"
        "from adapters.backbone import load_library\n"
        "before = threading.active_count()\n"
        "library = load_library()\n"
        "assert threading.active_count() == before, threading.enumerate()\n"
        "print(library.__version__, library.models.DeepFM.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0.3.0", "DeepFM"]
    assert "check the latest version" not in done.stdout
