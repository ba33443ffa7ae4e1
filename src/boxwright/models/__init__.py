"""Detectors in PyTorch, one file a family; the file name is the registry."""

from boxwright.core.preprocess_presets import preset as preprocess_by_name
from boxwright.models.common.detector import DetectionModel as DetectionModel
from boxwright.models.common.loading import LoadedModel as LoadedModel
from boxwright.models.common.loading import ModelInfo as ModelInfo
from boxwright.models.common.loading import build_model as build_model
from boxwright.models.common.loading import list_models as list_models
from boxwright.models.common.loading import load_model as load_model
from boxwright.models.common.targets import Targets as Targets

__all__ = [
    "DetectionModel",
    "LoadedModel",
    "ModelInfo",
    "Targets",
    "build_model",
    "list_models",
    "load_model",
    "preprocess_by_name",
]
