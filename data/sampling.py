"""Which frames of a video a batch holds.

all         every frame, in order: what evaluation, prediction and export always see, so that they are repeatable
uniform     `count` frames at equal distances, from the middles of as many equal parts of the video
random      `count` draws with replacement: frame floor(U T) of T, U uniform in [0, 1)
sequence    `count` frames in a row, the first of them floor(U (max(T - count, 0) + 1))

(google/youtube-8m, model_utils.SampleRandomFrames and SampleRandomSequence.) A video with fewer frames than `count` is,
but for `random`, seen whole, and the rest is padding: the published sequences repeat its last frame instead.

U is a pure function of (seed, epoch, row, number of the draw), whatever the batch, the rank and the machine: a resumed
training sees the frames that it would have seen.

Shapes   B videos   T places of the longest of them
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesConfig:
    """The frames of each video that a training step sees."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sampling: Literal["all", "uniform", "random", "sequence"] = "all"
    count: int = 30  # of each video; without effect on `all`

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, but got {self.count}")

    def places(
        self, lengths_B: NDArray[np.int64], rows_B: NDArray[np.int64], seed: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The frames to take of each video.

        Args:
            lengths_B: frames of each video, at least one.
            rows_B: its row in the cache, which names it.
            seed: of the draws.
            epoch: of the training: other draws in each.

        Returns:
            [B, T] numbers of frames, from 0 in each video, and [B, T] whether there is a frame; where not, the number
            is 0.
        """
        taken_B = lengths_B if self.sampling == "all" else np.minimum(lengths_B, self.count)
        if self.sampling == "random":
            taken_B = np.full_like(lengths_B, self.count)
        place_T = np.arange(int(taken_B.max(initial=0)))
        mask_BT = place_T < taken_B[:, None]
        frame_BT = np.broadcast_to(place_T, mask_BT.shape)
        if self.sampling == "uniform":
            frame_BT = (2 * place_T + 1) * lengths_B[:, None] // (2 * taken_B[:, None])
        elif self.sampling == "random":
            u_BT = uniforms(seed, epoch, rows_B[:, None], place_T)
            frame_BT = (u_BT * lengths_B[:, None]).astype(np.int64)
        elif self.sampling == "sequence":
            u_B = uniforms(seed, epoch, rows_B, 0)
            frame_BT = place_T + (u_B * (lengths_B - taken_B + 1)).astype(np.int64)[:, None]
        return np.where(mask_BT, frame_BT, 0), mask_BT


def uniforms(seed: int, epoch: int, rows: NDArray[np.int64], draws: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for every row and draw, with 53 random bits.

    SplitMix64's mixing function (Steele, Lea and Flood, 2014) over the row, then over the draw.
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
