"""Selects the frames of a video that a batch holds.

all         every frame, in order; evaluation, prediction and export always use it, so that they are repeatable
uniform     `count` frames at equal distances: the middles of `count` equal parts of the video
random      `count` draws with replacement: frame floor(U T) of T, U uniform in [0, 1)
sequence    `count` consecutive frames, the first of them floor(U (max(T - count, 0) + 1))

(google/youtube-8m, model_utils.SampleRandomFrames and SampleRandomSequence.) Of a video with fewer frames than `count`
all frames are taken, except with `random`, and the rest is padding; youtube-8m's sequences repeat the last frame.

U depends on (seed, epoch, row, number of the draw) alone, not on the batch, the rank or the machine, so a resumed
training sees the same frames as an uninterrupted one.

Shapes   B videos   T frames taken of the video with the most
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from data.ranges import Count, check_ranges

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesConfig:
    """The frames of each video that a training step sees."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    # Which frames of a video a training step sees. all: every frame. uniform: frames at equal distances. random: frames
    # drawn with replacement. sequence: consecutive frames from a random start. Validation always uses every frame.
    sampling: Literal["all", "uniform", "random", "sequence"] = "all"
    count: Count = 30  # number of frames taken of each video; has no effect with sampling all

    def __post_init__(self) -> None:
        check_ranges(self)

    def select(
        self, lengths_B: NDArray[np.int64], rows_B: NDArray[np.int64], seed: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Selects the frames to take of each video.

        Args:
            lengths_B: frames of each video, at least one.
            rows_B: the row of each video in the cache; another row, other draws.
            seed: of the draws.
            epoch: of the training; another epoch, other draws.

        Returns:
            int64 [B, T] frame numbers, from 0 in each video, and bool [B, T]; padding is False, with frame number 0.
        """
        taken_B = lengths_B if self.sampling == "all" else np.minimum(lengths_B, self.count)
        if self.sampling == "random":
            taken_B = np.full_like(lengths_B, self.count)
        position_T = np.arange(int(taken_B.max(initial=0)))
        mask_BT = position_T < taken_B[:, None]
        frame_BT = np.broadcast_to(position_T, mask_BT.shape)
        if self.sampling == "uniform":
            frame_BT = (2 * position_T + 1) * lengths_B[:, None] // (2 * taken_B[:, None])
        elif self.sampling == "random":
            u_BT = uniforms(seed, epoch, rows_B[:, None], position_T)
            frame_BT = (u_BT * lengths_B[:, None]).astype(np.int64)
        elif self.sampling == "sequence":
            u_B = uniforms(seed, epoch, rows_B, 0)
            frame_BT = position_T + (u_B * (lengths_B - taken_B + 1)).astype(np.int64)[:, None]
        return np.where(mask_BT, frame_BT, 0), mask_BT


def uniforms(seed: int, epoch: int, rows: NDArray[np.int64], draws: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Returns a random number in [0, 1) for every row and draw, with 53 random bits.

    It is the mixing function of SplitMix64 (Steele, Lea and Flood, 2014), applied to the row and then to the draw.
    """
    key = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):  # modulo 2 ** 64
        bits = _mix(_mix(key + np.asarray(rows).astype(np.uint64) * _GOLDEN) + np.asarray(draws, np.uint64) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


ALL = FramesConfig()
