"""Training on Lightning: `train(TrainConfig(...)) -> TrainResult`."""

from boxwright.training.config import Augmentation as Augmentation
from boxwright.training.config import TrainConfig as TrainConfig
from boxwright.training.run import TrainResult as TrainResult
from boxwright.training.run import train as train

__all__ = ["Augmentation", "TrainConfig", "TrainResult", "train"]
