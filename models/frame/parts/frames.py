"""Stored frames: dequantisation, and means, maxima and BatchNorm over the real frames, which padding does not affect.

Shapes   B videos in the batch   T frames of the longest   D features of a frame   K units of a frame   C classes
Source   google/youtube-8m, utils.Dequantize and frame_level_models.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.schema import DEQUANTISE_SCALE, DEQUANTISE_SHIFT
from models.inputs import Statistics
from models.layers import BatchNorm, NormalizeKind, matrices, normalizer
from models.tensors import in_pieces


class FrameInput(nn.Module):
    """Dequantises frames stored as bytes (floats are used unchanged) and normalises every frame."""

    def __init__(self, kind: NormalizeKind, statistics: Statistics) -> None:
        """Takes the statistics of the dequantised training frames."""
        super().__init__()
        self.normalize = normalizer(kind, statistics)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Bytes or floats [B, T, D] -> [B, T, D] float32, 0 where the mask is False."""
        if torch.compiler.is_exporting() or frames_BTD.requires_grad:
            return self._normalized(frames_BTD, mask_BT)
        x_BTD = torch.empty(frames_BTD.shape, device=frames_BTD.device)
        rows = x_BTD.flatten(0, 1), frames_BTD.flatten(0, 1), mask_BT.flatten()[:, None]
        for x_RD, frames_RD, mask_R1 in in_pieces(*rows):
            x_RD.copy_(self._normalized(frames_RD, mask_R1.squeeze(1)))
        return x_BTD

    def _normalized(self, frames: Tensor, mask: Tensor) -> Tensor:
        return padded(self.normalize(dequantised(frames)), mask)


def dequantised(frames_BTD: Tensor) -> Tensor:
    """float32: a byte q becomes q * DEQUANTISE_SCALE + DEQUANTISE_SHIFT, a float keeps its value."""
    if frames_BTD.is_floating_point():
        return frames_BTD.float()
    return frames_BTD.float().mul_(DEQUANTISE_SCALE).add_(DEQUANTISE_SHIFT)


def padded(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """X with 0 where the mask is False; padding may hold any value, NaN included."""
    return torch.where(mask_BT[..., None], x_BTK, 0.0)


def masked_mean(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the real frames, [B, K]; 0 for a video without frames.

    NOTE: google/youtube-8m divides by the number of frames too, but samples the frames with replacement before.
    """
    return padded(x_BTK, mask_BT).sum(dim=1) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)


def masked_max(x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
    """Largest value of each column among the real frames, [B, K]; 0 for a video without frames."""
    lowest = torch.finfo(x_BTK.dtype).min
    largest_BK = torch.where(mask_BT[..., None], x_BTK, lowest).amax(dim=1)
    return torch.where(mask_BT.any(dim=1, keepdim=True), largest_BK, 0.0)


class FrameBatchNorm(nn.Module):
    """BatchNorm of frames with the statistics of the real frames, each of which has the same weight.

    NOTE: google/youtube-8m includes the padding of short videos, or the frames that replace it, in the statistics.
    """

    def __init__(self, units: int, *, momentum: float, epsilon: float = 1e-3) -> None:
        """Takes the number of units K, and the weight `momentum` of a new batch in the running statistics."""
        super().__init__()
        self.norm = BatchNorm(units, eps=epsilon, momentum=momentum)

    def forward(self, x_BTK: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, K] -> [B, T, K], 0 where the mask is False; there x may hold any finite value."""
        normed_BTK = self.norm(x_BTK.flatten(0, 1), mask_BT.flatten()).view(x_BTK.shape)
        return normed_BTK if self.training else padded(normed_BTK, mask_BT)


class MeanPooled(nn.Module):
    """A video-level model on the mean of each video's frames.

    The mean is what a video-level record holds. The statistics are those of single frames, which vary more.
    """

    def __init__(self, model: nn.Module) -> None:
        """Takes the video-level model."""
        super().__init__()
        self.model = model

    @property
    def regularized(self) -> list[Tensor]:
        """The weight matrices of the video-level model, to which l1 and l2 apply."""
        return matrices(self.model)

    def forward(self, frames_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Frames [B, T, D] as bytes or floats, True where a frame is real [B, T] -> logits_BC."""
        logits_BC: Tensor = self.model(masked_mean(dequantised(frames_BTD), mask_BT))
        return logits_BC
