"""The public names of Lorestream, each imported when it is first used: reading tables needs no torch or vLLM."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.experts import HybridExpertAdapter as HybridExpertAdapter
    from adapters.fusion import InterestFusion as InterestFusion
    from adapters.fusion import mean_fusion as mean_fusion
    from adapters.joint import KnowledgeDataset as KnowledgeDataset
    from warehouse.frame import Frame as Frame
    from warehouse.reader import Warehouse as Warehouse
    from warehouse.reader import open as open

_HOMES = {
    "Frame": "warehouse.frame",
    "HybridExpertAdapter": "adapters.experts",
    "InterestFusion": "adapters.fusion",
    "KnowledgeDataset": "adapters.joint",
    "Warehouse": "warehouse.reader",
    "mean_fusion": "adapters.fusion",
    "open": "warehouse.reader",
}

__all__ = ["Frame", "HybridExpertAdapter", "InterestFusion", "KnowledgeDataset", "Warehouse", "mean_fusion", "open"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorestream' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
