"""Where a learner computes."""

import torch

from learner.config import LearningConfig
from starling.errors import check


def device_of(config: LearningConfig) -> torch.device:
    """Return the device that the settings choose, or refuse one that is not there."""
    cuda = torch.cuda.is_available()
    check(config.device != "cuda" or cuda, "learner.device must be auto or cpu where there is no GPU, got cuda")
    return torch.device("cuda" if cuda and config.device != "cpu" else "cpu")
