"""One mergeable accumulator for all metrics of a model's rankings.

Shapes   N videos seen   B videos in the batch   C classes   K = min(top_k, C) predictions kept of a video
         L labels in the batch   (ragged: those of video b are label_indices[label_offsets[b]:label_offsets[b + 1]])
Source   google/youtube-8m: eval_util.py and the two calculators that it calls

Where the source leaves a case open or to chance:

* Ties: every ranking is by score, highest first, then by video in the order seen, then by class index.
* A video without labels has the Hit@1 and the PERR 0, and counts. Without any positive, GAP and mAP are 0.
* Rankings do not depend on the sign of the scores, so logits and probabilities give the same. (The source's PERR does
  not count a hit whose score is 0 or less.) Precision, recall and the number of classes count logits above 0, that is
  probabilities above 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses.sparse_cross_entropy import softplus_sums
from models.metrics.pooled import pooled_gap_at
from models.metrics.registry import METRICS, METRICS_OF_LOGITS
from models.metrics.seen import Seen
from models.metrics.top_classes import rank_by_candidates, rank_by_sorting, refuse_nan
from models.ragged import cells_of, rows_of
from models.tensors import as_tensor, upcast

Columns = dict[str, NDArray[Any]]


class Accumulator:
    """Keeps what the metrics need of every video: 212 bytes at K = 20, with as many again in reserve; never N x C.

    The division of the videos into batches has no effect on the metrics, except on the last float32 digit of the loss.
    A merged accumulator equals one that saw the videos of self first and those of other after them; so ranks that are
    merged in their order always break ties alike.

    Tensors stay on their device until `compute`; on CUDA an update does not synchronise.
    """

    def __init__(self, num_classes: int, top_k: int = 20, *, loss: bool = True) -> None:
        """Starts without videos.

        Args:
            num_classes: C.
            top_k: number of predictions of a video that enter GAP and mAP, at most C of them.
            loss: whether `compute` gives the loss and the calibration error, for scores that are logits. The loss takes
                as much time as all other metrics together.

        Raises:
            ValueError: num_classes or top_k is below 1.
        """
        if num_classes < 1 or top_k < 1:
            raise ValueError(f"num_classes and top_k must be at least 1, but got {num_classes} and {top_k}")
        self.num_classes = num_classes
        self.top_k = min(top_k, num_classes)
        whole, real = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.double)
        # One row for each video, and rows in reserve. A few small tensors for every batch, between large ones that are
        # freed, would fragment the heap (measured: 3 GiB for 250,000 videos).
        self._columns: dict[str, Tensor] = {
            "scores": torch.zeros(0, self.top_k),  # of the top K, highest first
            "classes": torch.zeros(0, self.top_k, dtype=torch.int),
            "hits": torch.zeros(0, self.top_k, dtype=torch.bool),  # whether that class is a label of the video
            "perr": real,  # precision among as many predictions as the video has labels
            "predicted": whole,  # classes with a positive logit
            "predicted_right": whole,  # those of them that are labels of the video
        }
        if loss:
            self._columns["loss"] = real
        self._positives_C = torch.zeros(num_classes, dtype=torch.long)  # videos with each class as a label
        self._num_videos = 0

    def update(
        self,
        logits_BC: Tensor,
        label_offsets: Tensor,
        label_indices: Tensor,
        *,
        rated_offsets: Tensor | None = None,
        rated_indices: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            logits_BC: [B, C] of any float dtype; half precision is upcast.
            label_offsets: [B + 1] int64, on the logits' device.
            label_indices: [L] int64, on the logits' device; rated classes, each at most once for a video.
            rated_offsets: [B + 1] int64; None: every class of every video is rated.
            rated_indices: int64, ragged like the labels. A class that is not rated is neither ranked nor counted.

        Raises:
            ValueError: a logit is NaN (for logits on CUDA, `compute` raises it), or the shape is wrong.
        """
        if logits_BC.ndim != 2 or logits_BC.shape[1] != self.num_classes:
            raise ValueError(f"logits must be [videos, {self.num_classes}], but got {tuple(logits_BC.shape)}")
        logits_BC = upcast(logits_BC.detach())
        if rated_offsets is not None and rated_indices is not None:
            # Ranked last, where no hit is, and with a loss of softplus(-inf) = 0.
            logits_BC = logits_BC.masked_fill(~cells_of(rated_offsets, rated_indices, self.num_classes), -torch.inf)
        labels_B = label_offsets.diff()
        rows_L = rows_of(label_offsets, label_indices)
        truth_BC = cells_of(label_offsets, label_indices, self.num_classes)

        rank = rank_by_sorting if logits_BC.is_cuda else rank_by_candidates
        classes_BK, perr_B, predicted_B = rank(logits_BC, truth_BC, labels_B, self.top_k)
        logits_L = logits_BC[rows_L, label_indices]
        columns = {
            "scores": logits_BC.gather(1, classes_BK),
            "classes": classes_BK.int(),
            "hits": truth_BC.gather(1, classes_BK),
            "perr": perr_B,
            "predicted": predicted_B,
            "predicted_right": torch.zeros_like(labels_B).index_add_(0, rows_L, (logits_L > 0).long()),
        }
        if self.loss:
            negatives_B = softplus_sums(logits_BC, logits_BC.dtype).double()
            columns["loss"] = negatives_B.index_add_(0, rows_L, -logits_L.double())
        self._append(columns)
        self._positives_C = self._positives_C.to(logits_BC.device)
        self._positives_C.index_add_(0, label_indices, torch.ones_like(label_indices))

    @property
    def loss(self) -> bool:
        """Whether `compute` gives the loss."""
        return "loss" in self._columns

    def merge(self, other: Accumulator) -> None:
        """Adds the videos of another accumulator, ranked after those seen so far in case of ties.

        Raises:
            ValueError: the two differ in num_classes, top_k or loss.
        """
        ours, theirs = ((a.num_classes, a.top_k, a.loss) for a in (self, other))
        if ours != theirs:
            raise ValueError(f"accumulators must agree on (num_classes, top_k, loss), but got {ours} and {theirs}")
        self._append({name: column[: other._num_videos] for name, column in other._columns.items()})
        self._positives_C = self._positives_C + other._positives_C.to(self._positives_C.device)

    def compute(self, gap_at: Sequence[int] = ()) -> dict[str, float]:
        """The metrics of all videos seen.

        Args:
            gap_at: further numbers of predictions of a video, each in [1, K], for which to give the GAP.

        Returns:
            The metrics of models/metrics/registry.py by name, those of logits only with `loss`, and `gap_at_<k>` for
            each k of `gap_at`. The function of a metric has its definition.

        Raises:
            ValueError: no video was seen, a logit was NaN, or a k is outside [1, K].
        """
        if not self._num_videos:
            raise ValueError("metrics need at least one video, but got none")
        columns = self.state_dict()
        refuse_nan(columns["scores"])
        seen = Seen(**{name: column for name, column in columns.items() if name not in ("num_classes", "top_k")})
        found = {name: metric(seen) for name, metric in METRICS.items()}
        found |= {f"gap_at_{k}": pooled_gap_at(k, seen) for k in gap_at}
        if self.loss:
            found |= {name: metric(seen) for name, metric in METRICS_OF_LOGITS.items()}
        return found

    def state_dict(self) -> Columns:
        """Everything seen, as arrays, for `from_state` in another process."""
        state: Columns = {"num_classes": np.array(self.num_classes), "top_k": np.array(self.top_k)}
        state["positives"] = self._positives_C.cpu().numpy().copy()  # copied: later updates add in place
        for name, column in self._columns.items():
            state[name] = column[: self._num_videos].cpu().numpy()
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Accumulator:
        """An accumulator in the state that `state_dict` returned."""
        accumulator = cls(int(state["num_classes"]), int(state["top_k"]), loss="loss" in state)
        accumulator._append({name: as_tensor(state[name]) for name in accumulator._columns})
        accumulator._positives_C = as_tensor(state["positives"])
        return accumulator

    def _append(self, columns: dict[str, Tensor]) -> None:
        start, stop = self._num_videos, self._num_videos + len(columns["scores"])
        for name, rows in columns.items():
            column = self._columns[name]
            dtype = torch.promote_types(column.dtype, rows.dtype)  # float64 where float64 logits follow float32 ones
            if len(column) < stop or column.dtype != dtype:
                grown = rows.new_empty((max(stop, 2 * len(column)), *rows.shape[1:]), dtype=dtype)
                grown[:start] = column[:start]
                self._columns[name] = column = grown
            column[start:stop] = rows
        self._num_videos = stop
