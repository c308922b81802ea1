"""From stored frames to one row for each video. Padding has no say: it stays 0, in sums and in BatchNorm alike.

Shapes   B videos   T frames of the longest of them   D features of a frame   K units of a frame   C classes
Source   google/youtube-8m, utils.Dequantize and frame_level_models.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import BatchNorm, NormalizeKind, Statistics, matrices, normalizer

# A byte q stands for q * SCALE + SHIFT: 255 steps from -2 to 2, each at its middle.
DEQUANTISE_SCALE, DEQUANTISE_SHIFT = 4 / 255, 4 / 512 - 2


class FrameInput(nn.Module):
    """Dequantise bytes (floats are taken as they are) and normalise every frame."""

    def __init__(self, kind: NormalizeKind, statistics: Statistics) -> None:
        """Takes the statistics of all training frames, dequantised."""
        super().__init__()
        self.normalize = normalizer(kind, statistics)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Bytes or floats -> [B, T, D] float32, 0 where the mask is False."""
        return padded(self.normalize(dequantised(frames_BTD)), mask_BT)


def dequantised(frames_BTD: Tensor) -> Tensor:
    """Bytes or floats -> float32."""
    if frames_BTD.is_floating_point():
        return frames_BTD.float()
    return frames_BTD.float() * DEQUANTISE_SCALE + DEQUANTISE_SHIFT


def padded(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """The same with 0 where the mask is False, whatever stood there."""
    return torch.where(mask_BT[..., None], x_BTK, 0.0)


def masked_mean(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the real frames, [B, K]; 0 for a video without one.

    NOTE: published code divides by the number of frames too, but samples frames with replacement before.
    """
    return padded(x_BTK, mask_BT).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


def masked_max(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Largest value of each column among the real frames, [B, K]; 0 for a video without one."""
    lowest = torch.finfo(x_BTK.dtype).min
    largest_BK = torch.where(mask_BT[..., None], x_BTK, lowest).amax(dim=1)
    return torch.where(mask_BT.any(dim=1, keepdim=True), largest_BK, 0.0)


class FrameBatchNorm(nn.Module):
    """BatchNorm of frames, by the statistics of the real ones alone: a long video counts for more, padding for nothing.

    NOTE: published code folds the padding of short videos, or the frames that fill it up, into the statistics.
    """

    def __init__(self, units: int, *, momentum: float, epsilon: float = 1e-3) -> None:
        """Takes the weight of a new batch in the running statistics."""
        super().__init__()
        self.norm = BatchNorm(units, eps=epsilon, momentum=momentum)

    def forward(self, x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, K] -> [B, T, K], 0 where the mask is False."""
        if not self.training:
            return padded(self.norm(x_BTK.flatten(0, 1)).view(x_BTK.shape), mask_BT)
        normed_RK = self.norm(x_BTK[mask_BT])  # R real frames of all videos
        normed_BTK: Tensor = normed_RK.new_zeros(x_BTK.shape)
        normed_BTK[mask_BT] = normed_RK
        return normed_BTK


class MeanPooled(nn.Module):
    """A video-level model on the mean of a video's frames.

    Its features are then what a video-level record holds, but its statistics those of single frames, which vary more.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes the model of the means."""
        super().__init__()
        self.model = model

    @property
    def regularized(self) -> list[Tensor]:
        """The model's."""
        return matrices(self.model)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Bytes or floats, and which are frames -> logits_BC."""
        logits_BC: Tensor = self.model(masked_mean(dequantised(frames_BTD), mask_BT))
        return logits_BC
