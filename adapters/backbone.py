"""A CTR model of DeepCTR-Torch over our samples, with augment vectors as dense features that gradients reach.

The model is the library's; this file says which fields it sees and lays them into its input matrix:

    item, category          the target; item ids unseen in training, and masked ones, share one out-of-vocabulary id
    hist_item/_category     the newest positive events before the target (DIN attends to them, DIEN reads them from the
                            oldest to the newest, the others average)
    other_item/_category    the newest other events before the target, averaged (the library's DIEN has no place for it)
    history                 share of positives among those events, and how full the window is
    further fields          what the caller gives beside: demographics, a group
    knowledge               user augment, item augment, and a flag for each (only where an arm has knowledge)

No user id: the model must work for users it has not seen.
"""

import importlib.util
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from adapters.config import CtrConfig
from adapters.samples import Samples
from warehouse.errors import ConfigError

PAD, OUT_OF_VOCABULARY, FIRST_KNOWN = 0, 1, 2

# Ids travel in the library's float32 input matrix, which counts exactly up to here.
MAX_ITEMS = 2**24 - FIRST_KNOWN

# These count fields by embedding table, so in them the history's fields cannot share the target's.
COUNT_TABLES = frozenset({"AutoInt", "xDeepFM", "FiBiNET"})
# These read the positive events one by one and want to know how many there are.
READ_EVENTS = frozenset({"DIN", "DIEN"})
# These have no argument for it: it is 0 in them.
NO_LINEAR_DECAY = frozenset({"AutoInt"})


def load_library() -> ModuleType:
    """The package `deepctr_torch`, imported without its look for a newer version on the network.

    Its `__init__` starts a thread that calls PyPI, and no setting turns that off. So its `utils` module, which holds
    only that function, is loaded first with the function doing nothing; the package then finds it in place.
    """
    if "deepctr_torch" not in sys.modules:
        package = importlib.util.find_spec("deepctr_torch")
        if package is None or not package.submodule_search_locations:
            raise ConfigError("DeepCTR-Torch is not installed. Install it with `pip install 'lorestream[lift]'`.")
        folder = package.submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location("deepctr_torch.utils", f"{folder}/utils.py")
        assert spec is not None, folder
        assert spec.loader is not None, folder
        utils = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(utils)
        setattr(utils, "check_version", lambda version: None)  # noqa: B010  (a module has no declared attributes)
        sys.modules["deepctr_torch.utils"] = utils
    return import_module("deepctr_torch")


class CtrModel(nn.Module):
    """Logits [b] of a library model for samples by position, given their knowledge features [b, knowledge_dim].

    `known` [items] marks the item codes with training interactions: only those get an id of their own. Positions index
    `samples`, of which the model keeps the columns it reads, on its device. `fields` are further categorical fields by
    name, codes [n] from 0.
    """

    def __init__(
        self,
        samples: Samples,
        known: np.ndarray,
        config: CtrConfig,
        knowledge_dim: int = 0,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__()
        if len(samples.items) > MAX_ITEMS:
            raise ConfigError(f"{len(samples.items)} items are more than the library can number ({MAX_ITEMS}).")
        self.config, self.knowledge_dim = config, knowledge_dim
        self.length = samples.liked.shape[1]
        self.has_categories = len(samples.categories) > 0
        tokens = np.where(known, np.cumsum(known) - 1 + FIRST_KNOWN, OUT_OF_VOCABULARY)
        # History arrays hold code + 1, 0 for nothing. An unknown item says nothing as history, so it is left out.
        history_tokens = np.append(PAD, np.where(known, tokens, PAD))
        vocabulary = FIRST_KNOWN + int(known.sum())

        def column(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(config.device)

        self.item = column(tokens[samples.item])
        self.category = column(samples.category[samples.item])
        self.liked, self.disliked = column(samples.liked), column(samples.disliked)
        self.history_tokens = column(history_tokens)
        self.history_categories = column(np.append(PAD, samples.category))
        self.fields = {name: column(codes) for name, codes in (fields or {}).items()}
        with torch.random.fork_rng(devices=[]):
            self.net = self._library_model(vocabulary, len(samples.categories) + 1)
            torch.manual_seed(config.seed)
            self._initialise()
        self.to(config.device)

    def _library_model(self, vocabulary: int, categories: int) -> nn.Module:
        load_library()
        inputs, models = import_module("deepctr_torch.inputs"), import_module("deepctr_torch.models")
        config = self.config
        reads = config.backbone in READ_EVENTS
        shared = config.backbone not in COUNT_TABLES
        columns = []
        for field, size in (("item", vocabulary), ("category", categories))[: 1 + self.has_categories]:
            columns.append(inputs.SparseFeat(field, size, config.embedding_dim))
            for history in ("hist",) if config.backbone == "DIEN" else ("hist", "other"):
                name = f"{history}_{field}"
                table = inputs.SparseFeat(name, size, config.embedding_dim, embedding_name=field if shared else name)
                # Events are masked by a length column where they are read, else by not being 0.
                length = "hist_length" if reads and history == "hist" else None
                columns.append(inputs.VarLenSparseFeat(table, self.length, "mean", length))
        for field, codes in self.fields.items():
            columns.append(inputs.SparseFeat(field, int(codes.max()) + 1, config.embedding_dim))
        columns.append(inputs.DenseFeat("history", 2))
        if self.knowledge_dim:
            columns.append(inputs.DenseFeat("knowledge", self.knowledge_dim))
        # A regression task is the library's way of returning the logit, which is safer to take a log loss of.
        common = {"task": "regression", "seed": config.seed, "dnn_hidden_units": config.hidden}
        common |= {"dnn_dropout": config.dropout, "l2_reg_embedding": 0.0, "device": config.device}
        build = getattr(models, config.backbone)
        if reads:
            model: nn.Module = build(columns, ["item", "category"][: 1 + self.has_categories], **common)
        else:
            linear = {} if config.backbone in NO_LINEAR_DECAY else {"l2_reg_linear": 0.0}
            model = build(columns, columns, **common, **linear)
        self.places = list(cast(dict[str, tuple[int, int]], model.feature_index))
        return model

    def _initialise(self) -> None:
        """Xavier weights for every Linear layer of the network.

        The library draws them with a standard deviation of 1e-4, from which small data needs many epochs to start.
        """
        for name, module in self.net.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
            elif isinstance(module, nn.Embedding) and not name.startswith("linear_model"):
                nn.init.normal_(module.weight, std=0.05)

    def forward(self, index: Tensor, knowledge: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        """Logits [b] of samples `index` [b]; where `masked` [b] is true, the target's item id is hidden."""
        item = self.item[index]
        if masked is not None:
            item = item.masked_fill(masked, OUT_OF_VOCABULARY)
        liked, disliked = self.liked[index].long(), self.disliked[index].long()
        liked_count, disliked_count = (liked > 0).sum(1), (disliked > 0).sum(1)
        events = liked_count + disliked_count
        length = liked_count
        if self.config.backbone == "DIEN":
            liked = _oldest_first(liked, liked_count)
            # It fails on a batch without any event; one that is padding says as little.
            length = liked_count.clamp(min=1)
        parts = {
            "item": item[:, None],
            "hist_item": self.history_tokens[liked],
            "other_item": self.history_tokens[disliked],
            "hist_length": length[:, None],
            "category": self.category[index][:, None],
            "hist_category": self.history_categories[liked],
            "other_category": self.history_categories[disliked],
            # Both near zero mean: (likes + 1) / (events + 2) is one half for an unknown user.
            "history": torch.stack([(liked_count + 1) / (events + 2) - 0.5, events / (2 * self.length) - 0.5], dim=1),
        }
        if self.knowledge_dim:
            assert knowledge is not None, "a model built for knowledge was called without it"
            parts["knowledge"] = knowledge
        parts |= {name: codes[index][:, None] for name, codes in self.fields.items()}
        matrix = torch.cat([parts[name].float() for name in self.places], dim=1)
        # The library's DCNMix squeezes a batch of one sample away, which the last batch of an epoch may be.
        logits: Tensor = self.net(matrix if len(matrix) > 1 else matrix.expand(2, -1))
        return logits[: len(matrix)].squeeze(1)


def _oldest_first(events: Tensor, count: Tensor) -> Tensor:
    """Events [b, length] that stand newest first, `count` [b] of them, turned round; what pads stays behind."""
    place = count[:, None] - 1 - torch.arange(events.shape[1], device=events.device)
    return torch.where(place >= 0, events.gather(1, place.clamp(min=0)), PAD)
