"""The optimizer steps of an epoch, for every pipeline that takes steps: the loop, its CUDA graph, its GPU memory."""

from tuner.training.steps.graph import GraphedStep
from tuner.training.steps.loop import StepLoop
from tuner.training.steps.memory import MemoryFallback

__all__ = ["GraphedStep", "MemoryFallback", "StepLoop"]
