"""Versions of state dicts: weights of another layout are refused instead of loaded into the wrong places."""

from collections.abc import MutableMapping

import torch
from torch import Tensor, nn

from warehouse.errors import InputError

KEY = "state_version"


def versioned(module: nn.Module, version: int) -> None:
    """Make state dicts of `module` say `version`, and make it refuse those of another with InputError.

    The version is a buffer and not torch's metadata, which formats such as safetensors drop. A dict without one is of
    version 1: those were written before there were versions.
    """
    module.register_buffer(KEY, torch.tensor(version))
    module.register_load_state_dict_pre_hook(_check)  # type: ignore[no-untyped-call]


def _check(module: nn.Module, state: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    wanted = int(module.get_buffer(KEY))
    found = state.setdefault(prefix + KEY, torch.tensor(1))
    if int(found) != wanted:
        raise InputError(
            f"These weights of {type(module).__name__} are of layout {int(found)}, this version of Lorestream has "
            f"layout {wanted}. Load them with the Lorestream that saved them, or train again."
        )
