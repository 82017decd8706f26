"""Models: features of spots to expression. One file per model."""

from .base import Shape, SpotModel, get_model, list_models, register
from .batch import Batch, Nearest, Output, Slides, Visitors
from .bleep import BLEEP, BLEEPConfig
from .egn import EGN, EGNConfig
from .gene_dml import GeneDML
from .gene_dml_config import GeneDMLConfig
from .hist2st import Hist2ST, Hist2STConfig
from .histogene import HisToGene, HisToGeneConfig
from .kernel import Kernel, KernelConfig
from .m2ost import M2OST, M2OSTConfig
from .nh2st import NH2ST, NH2STConfig
from .ridge import Ridge, RidgeConfig
from .scaling import Scalers
from .stnet import STNet, STNetConfig
from .triplex import Triplex, TriplexConfig

__all__ = [
    "EGN",
    "M2OST",
    "NH2ST",
    "Batch",
    "BLEEP",
    "BLEEPConfig",
    "EGNConfig",
    "GeneDML",
    "GeneDMLConfig",
    "HisToGene",
    "HisToGeneConfig",
    "Hist2ST",
    "Hist2STConfig",
    "Kernel",
    "KernelConfig",
    "M2OSTConfig",
    "NH2STConfig",
    "Nearest",
    "Output",
    "Ridge",
    "RidgeConfig",
    "STNet",
    "STNetConfig",
    "Scalers",
    "Shape",
    "Slides",
    "SpotModel",
    "Triplex",
    "TriplexConfig",
    "Visitors",
    "get_model",
    "list_models",
    "register",
]


def __dir__() -> list[str]:
    return sorted(__all__)
