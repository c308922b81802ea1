"""The world that the videos of a sample are drawn from: what makes sample shards learnable.

All splits of one seed share one world. Classes come in groups whose members often occur in the same video, some classes
are far more frequent than others (Zipf), and each class is a direction in a small latent space. A video's latent vector
is the sum of its classes' directions plus noise. Its features are a fixed random linear map of that vector plus more
noise, with about the means and variances of the real features. The latent noise keeps even a perfect model from being
always right.

At frame level a class is visible in one run of its video's frames, a quarter to a half of them, so a model that finds
the right frames does better than one that averages all of them. At segment level some segments of a video are rated for
one or two classes: one of the video's classes, which is visible there or not, and sometimes another class.

Shapes   N videos   C classes   L latent directions   D columns of features   T frames of a video   K classes of a video
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.schema import SEGMENT_FRAMES, Schema, quantise

_LATENT = 32  # L
_GROUP = 8  # classes whose members often occur in the same video
_TOGETHER = 12.0  # how many times as often
_NOISE = 0.18  # in the latent space, where a class has length 1; it limits every model


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameVideo:
    """A video of frames."""

    labels: list[int]
    bytes_TD: NDArray[np.uint8]
    ratings: list[tuple[int, int, float]]  # start, class, score


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What all videos of one seed have in common."""

    schema: Schema
    log_frequency_C: NDArray[np.float32]
    group_C: NDArray[np.int64]
    directions_CL: NDArray[np.float32]
    map_LD: NDArray[np.float32]
    mean_D: NDArray[np.float32]
    noise_D: NDArray[np.float32]

    @classmethod
    def of(cls, schema: Schema, seed: int) -> "World":
        """Draws the world of a seed."""
        rng = np.random.default_rng([seed, 0])
        C = schema.num_classes
        group_C = rng.permutation(C) // _GROUP
        directions_CL = rng.standard_normal((C, _LATENT)) + rng.standard_normal((C, _LATENT))[group_C] * 0.5
        directions_CL /= np.linalg.norm(directions_CL, axis=1, keepdims=True)
        # The variance of a real column is 0.22 in mean_rgb and 0.47 in mean_audio, which is the narrower feature.
        deviation_D = np.concatenate([np.full(w, (0.22 if w > 256 else 0.47) ** 0.5) for w in schema.features.values()])
        size = (2.6 + _LATENT * _NOISE**2) ** 0.5  # length of a latent vector, at 2.6 labels per video
        map_LD = rng.standard_normal((_LATENT, schema.width)) * deviation_D * 0.7 / size
        return cls(
            schema=schema,
            log_frequency_C=-np.log(np.arange(C, dtype=np.float32) + 1.5),
            group_C=group_C,
            directions_CL=_exact(directions_CL),
            map_LD=_exact(map_LD),
            mean_D=rng.uniform(-0.04, 0.04, schema.width).astype(np.float32),
            noise_D=(deviation_D * 0.7).astype(np.float32),
        )

    def videos(self, num_videos: int, rng: np.random.Generator) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Draws videos; yields the labels and features_D of each."""
        labels_NC = self._labels(num_videos, rng)
        latent_NL = labels_NC.astype(np.float32) @ self.directions_CL
        latent_NL += _NOISE * rng.standard_normal(latent_NL.shape, np.float32)
        features_ND = rng.standard_normal((num_videos, self.schema.width), np.float32)
        features_ND *= self.noise_D
        features_ND += self._mapped(latent_NL)
        features_ND.clip(-2, 2, out=features_ND)
        for labels_C, features_D in zip(labels_NC, features_ND, strict=True):
            yield np.flatnonzero(labels_C).tolist(), features_D

    def frames(self, num_videos: int, rng: np.random.Generator) -> Iterator["FrameVideo"]:
        """Draws videos of frames, with ratings at segment level."""
        for labels_C in self._labels(num_videos, rng):
            labels = np.flatnonzero(labels_C)
            num_frames = int(rng.integers(-(-self.schema.max_frames // 2), self.schema.max_frames, endpoint=True))
            shown_N = np.maximum(1, (num_frames * rng.uniform(0.25, 0.5, len(labels))).astype(np.int64))
            start_N = rng.integers(0, num_frames - shown_N, endpoint=True)
            since_TN = np.arange(num_frames)[:, None] - start_N
            seen_TN = (since_TN >= 0) & (since_TN < shown_N)
            latent_TL = seen_TN.astype(np.float32) @ self.directions_CL[labels]
            latent_TL += _NOISE * rng.standard_normal(latent_TL.shape, np.float32)
            frames_TD = rng.standard_normal((num_frames, self.schema.width), np.float32)
            frames_TD *= self.noise_D
            frames_TD += self._mapped(latent_TL)
            ratings = self._ratings(labels, seen_TN, rng) if self.schema.level == "segment" else []
            yield FrameVideo(labels=labels.tolist(), bytes_TD=quantise(frames_TD), ratings=ratings)

    def _mapped(self, latent_NL: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the mean features_ND of latent vectors, the same to the last bit on every processor.

        BLAS adds in an order that depends on the processor. Multiples of 2^-20 below 16 have products that are
        multiples of 2^-40; sums of these below 2^13 are exact in float64, so their order does not matter.
        """
        product_ND = _exact(latent_NL).astype(np.float64) @ self.map_LD.astype(np.float64)
        return product_ND.astype(np.float32) + self.mean_D

    def _ratings(
        self, labels: NDArray[np.int64], seen_TN: NDArray[np.bool_], rng: np.random.Generator
    ) -> list[tuple[int, int, float]]:
        """Draws (start, class, score) for about half of the video's segments."""
        ratings = []
        for start in range(0, max(len(seen_TN) - SEGMENT_FRAMES, 0) + 1, SEGMENT_FRAMES):
            if rng.random() < 0.5:
                continue
            one = int(rng.integers(len(labels)))
            there = seen_TN[start : start + SEGMENT_FRAMES, one].mean() >= 0.5
            ratings.append((start, int(labels[one]), float(there)))
            other = int(rng.integers(self.schema.num_classes))
            if rng.random() < 0.3 and other not in labels:
                ratings.append((start, other, 0.0))
        return ratings

    def _labels(self, num_videos: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draws one to six classes per video: the first by frequency, the others mostly of its group (Gumbel top-k)."""
        C = self.schema.num_classes
        rows = np.arange(num_videos)
        score_NC = self.log_frequency_C + rng.gumbel(size=(num_videos, C)).astype(np.float32)
        first_N = score_NC.argmax(axis=1)
        score_NC += np.log(_TOGETHER).astype(np.float32) * (self.group_C == self.group_C[first_N][:, None])
        score_NC[rows, first_N] = np.inf
        count_N = np.minimum(1 + rng.poisson(1.6, num_videos).clip(max=5), C)
        order_NK = np.argsort(-score_NC, axis=1)[:, :6]
        labels_NC = np.zeros((num_videos, C), np.bool_)
        labels_NC[rows[:, None], order_NK] = np.arange(order_NK.shape[1]) < count_N[:, None]
        return labels_NC


def _exact(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Returns the nearest multiples of 2^-20; the values must be below 16."""
    return np.ldexp(np.rint(np.ldexp(values, 20)), -20).astype(np.float32)
