"""GAP, Hit@1, PERR, mAP, number of classes, precision, recall, calibration and loss, from one mergeable accumulator.

Shapes   N videos seen   B videos in the batch   C classes   K = min(top_k, C) predictions kept per video
         L labels in the batch   (sparse: those of video b are label_indices[label_offsets[b]:label_offsets[b + 1]])
Source   google/youtube-8m: eval_util.py and the two calculators it calls

Where the published code leaves something open or to chance, ours is:

* Ties: every ranking is by score, highest first, then by video in the order seen, then by class index.
* A video without labels scores 0 in Hit@1 and PERR and counts in both. Without a single positive GAP and mAP are 0.
* Rankings do not depend on the scores' sign, so logits and probabilities give the same. (The published PERR drops hits
  whose score is not above 0.) Precision, recall and the number of classes cut at a logit of 0: a probability of 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from models.losses.cross_entropy import softplus_sums
from models.ragged import cells_of, rows_of
from models.tensors import as_tensor, upcast

Columns = dict[str, NDArray[Any]]

CHUNK = 1024  # videos of a dense input that are ranked at a time


class Accumulator:
    """Keeps what the metrics need of every video, 212 bytes at K = 20 and as much to spare; never N x C.

    How the videos were cut into batches does not matter (but to the last float32 digit of the loss). Merging gives what
    one accumulator would have that saw self's videos first, then other's: merge in the order of the ranks, and even
    ties fall the same way every time.

    Tensors stay on their device until `compute`; on CUDA an update waits for nothing.
    """

    def __init__(self, num_classes: int, top_k: int = 20, *, loss: bool = True) -> None:
        """Starts empty.

        Args:
            num_classes: C.
            top_k: predictions of a video that enter GAP and mAP; all of them where there are fewer classes.
            loss: whether `compute` gives the loss too. It costs as much as all the rest, and scores that are not logits
                have none.
        """
        if num_classes < 1 or top_k < 1:
            raise ValueError(f"num_classes and top_k must be at least 1, but got {num_classes} and {top_k}")
        self.num_classes = num_classes
        self.top_k = min(top_k, num_classes)
        whole, real = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.double)
        # A row a video, and rows to spare: a few tensors kept of every batch, amid the large ones that come and go,
        # would leave the heap in pieces (measured: 3 GiB for 250,000 videos).
        self._columns: dict[str, Tensor] = {
            "scores": torch.zeros(0, self.top_k),  # of the top K, highest first
            "classes": torch.zeros(0, self.top_k, dtype=torch.int),
            "hits": torch.zeros(0, self.top_k, dtype=torch.bool),  # whether the video carries that class
            "perr": real,  # precision among as many predictions as the video has labels
            "predicted": whole,  # classes with a positive logit
            "predicted_right": whole,  # those of them that the video carries
        }
        if loss:
            self._columns["loss"] = real
        self._positives_C = torch.zeros(num_classes, dtype=torch.long)  # videos that carry each class
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
            label_indices: [L] int64, on the logits' device; a video carries a class at most once, and a rated one.
            rated_offsets: [B + 1] int64; None: every class of every video is rated.
            rated_indices: int64, ragged as the labels. A class that is not rated is neither ranked nor counted.

        Raises:
            ValueError: a logit is NaN (for logits on CUDA, `compute` says so), or the shape is wrong.
        """
        if logits_BC.ndim != 2 or logits_BC.shape[1] != self.num_classes:
            raise ValueError(f"logits must be [videos, {self.num_classes}], but got {tuple(logits_BC.shape)}")
        logits_BC = upcast(logits_BC.detach())
        if rated_offsets is not None and rated_indices is not None:
            # Behind all others, where no hit is, and with a loss of softplus(-inf) = 0.
            logits_BC = logits_BC.masked_fill(~cells_of(rated_offsets, rated_indices, self.num_classes), -torch.inf)
        labels_B = label_offsets.diff()
        rows_L = rows_of(label_offsets, label_indices)
        truth_BC = cells_of(label_offsets, label_indices, self.num_classes)

        rank = _rank_by_sorting if logits_BC.is_cuda else _rank_by_candidates
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
        """Adds another accumulator's videos, after those seen so far.

        Raises:
            ValueError: the two were not made alike.
        """
        ours, theirs = ((a.num_classes, a.top_k, a.loss) for a in (self, other))
        if ours != theirs:
            raise ValueError(f"accumulators must agree on (num_classes, top_k, loss), but got {ours} and {theirs}")
        self._append({name: column[: other._num_videos] for name, column in other._columns.items()})
        self._positives_C = self._positives_C + other._positives_C.to(self._positives_C.device)

    def compute(self, gap_at: Sequence[int] = ()) -> dict[str, float]:
        """The metrics of all videos seen.

        Args:
            gap_at: further numbers of predictions a video to give the GAP of, at most K.

        Returns:
            gap: sum over the hits among all videos' top K predictions, pooled and ranked, of (hits so far / rank), over
                the number of positives: all of them, also those outside the top K.
            hit_at_1: share of the videos whose highest prediction is one of their labels.
            perr: mean over videos of the precision among the top n_i predictions, n_i = the video's number of labels.
            gap_at_k: the same of so many predictions a video, for each k of `gap_at`.
            map: mean over the classes with a positive of the class's average precision in the same pool, over all the
                class's positives. (models/metrics/per_class.py has the one over all videos.)
            average_num_classes: mean number of classes with a probability above 1/2.
            precision, recall: over all cells (micro) at 1/2; 0 where nothing is predicted or nothing is to be found.
            calibration_error: of the pool's predictions, see `calibration_error`; where the scores are logits.
            loss: mean over videos of the binary cross-entropy summed over classes, unweighted.
            num_videos: N.

        Raises:
            ValueError: no video was seen, or a logit was NaN.
        """
        if not self._num_videos:
            raise ValueError("metrics need at least one video, but got none")
        columns = self.state_dict()
        _refuse_nan(columns["scores"])
        positives_C = columns["positives"]
        order = descending(columns["scores"].ravel())  # the pool: ties by video, then class
        hits = columns["hits"].ravel()[order]
        classes = columns["classes"].ravel()[order]
        predicted, right = int(columns["predicted"].sum()), int(columns["predicted_right"].sum())
        found = {
            "gap": average_precision(hits, int(positives_C.sum())),
            "hit_at_1": float(columns["hits"][:, 0].mean()),
            "perr": float(columns["perr"].mean()),
            "map": _mean_average_precision(hits, classes, positives_C),
            "average_num_classes": predicted / self._num_videos,
            "precision": right / predicted if predicted else 0.0,
            "recall": right / int(positives_C.sum()) if positives_C.any() else 0.0,
            "num_videos": float(self._num_videos),
        }
        for k in gap_at:
            found[f"gap_at_{k}"] = self._gap_at(k, columns)
        if self.loss:
            found["calibration_error"] = calibration_error(columns["scores"], columns["hits"])
            found["loss"] = float(columns["loss"].mean())
        return found

    def _gap_at(self, k: int, columns: Columns) -> float:
        if not 1 <= k <= self.top_k:
            raise ValueError(f"gap_at must be in [1, {self.top_k}], the predictions that are kept, but got {k}")
        order = descending(columns["scores"][:, :k].ravel())
        return average_precision(columns["hits"][:, :k].ravel()[order], int(columns["positives"].sum()))

    def state_dict(self) -> Columns:
        """Everything seen, as arrays: to be sent to another process and read there by `from_state`."""
        state: Columns = {"num_classes": np.array(self.num_classes), "top_k": np.array(self.top_k)}
        state["positives"] = self._positives_C.cpu().numpy().copy()  # which updates go on adding to
        for name, column in self._columns.items():
            state[name] = column[: self._num_videos].cpu().numpy()
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Accumulator:
        """The accumulator whose `state_dict` this is."""
        accumulator = cls(int(state["num_classes"]), int(state["top_k"]), loss="loss" in state)
        accumulator._append({name: as_tensor(state[name]) for name in accumulator._columns})
        accumulator._positives_C = as_tensor(state["positives"])
        return accumulator

    def _append(self, columns: dict[str, Tensor]) -> None:
        start, stop = self._num_videos, self._num_videos + len(columns["scores"])
        for name, rows in columns.items():
            column = self._columns[name]
            dtype = torch.promote_types(column.dtype, rows.dtype)  # float64 logits after float32 ones
            if len(column) < stop or column.dtype != dtype:
                grown = rows.new_empty((max(stop, 2 * len(column)), *rows.shape[1:]), dtype=dtype)
                grown[:start] = column[:start]
                self._columns[name] = column = grown
            column[start:stop] = rows
        self._num_videos = stop


def gap(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int = 20) -> float:
    """GAP = sum_i p(i) dr(i) over every video's top_k predictions, pooled and ranked by score, as in `Accumulator`.

    p(i): precision among the first i. dr(i): 1 / all positives at a hit, else 0. No positives: 0.

    Args:
        scores_NC: [N, C] float, numpy or torch; logits or probabilities.
        labels_NC: [N, C] of 0/1 or bool.
        top_k: predictions kept per video; published: 20.
    """
    return _compute(scores_NC, labels_NC, top_k)["gap"]


def hit_at_1(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor) -> float:
    """Share of the videos whose highest prediction is one of their labels; without labels: 0, and counts."""
    return _compute(scores_NC, labels_NC, 1)["hit_at_1"]


def perr(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor) -> float:
    """Precision at equal recall rate: mean precision among a video's top n_i predictions, n_i its number of labels.

    A video without labels scores 0 and counts.
    """
    return _compute(scores_NC, labels_NC, 20)["perr"]


def mean_average_precision(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int = 20) -> float:
    """Mean average precision of the classes with a positive, over GAP's pool and all of the class's positives.

    So a class sees only the videos whose top_k it is in. No positives: 0.
    """
    return _compute(scores_NC, labels_NC, top_k)["map"]


def calibration_error(logits: NDArray[Any], hits: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error: how far probabilities are from the share of hits, in equal bins of probability.

    sum over bins of (predictions in it / all predictions) * |mean probability - share of hits|

    Source: Guo et al., 2017 (arXiv 1706.04599), there of the one prediction of an image. Over all cells (video, class)
    it would be next to 0 for any model that knows most classes to be absent, so take the best of each video.

    Args:
        logits: of any shape; minus infinity is no prediction (a class that is not rated).
        hits: of the same shape.
        bins: of equal width.

    Returns:
        In [0, 1]; 0 without a prediction.
    """
    predicted = ~np.isneginf(logits)
    probabilities = torch.from_numpy(logits[predicted]).double().sigmoid().numpy()
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    surplus = np.bincount(places, weights=probabilities - hits[predicted], minlength=bins)  # predicted, but no hits
    return float(np.abs(surplus).sum() / max(len(probabilities), 1))


def _compute(scores_NC: ArrayLike | Tensor, labels_NC: ArrayLike | Tensor, top_k: int) -> dict[str, float]:
    """The accumulator's metrics of a dense input."""
    scores = scores_NC if isinstance(scores_NC, Tensor) else np.asarray(scores_NC)
    labels = labels_NC.cpu().numpy() if isinstance(labels_NC, Tensor) else np.asarray(labels_NC)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must both be [videos, classes], but got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    accumulator = Accumulator(scores.shape[1], top_k, loss=False)
    for start in range(0, len(scores), CHUNK):
        scores_BC = as_tensor(scores[start : start + CHUNK])
        rows_L, classes_L = np.divmod(np.flatnonzero(labels[start : start + CHUNK]), scores.shape[1])
        offsets = np.searchsorted(rows_L, np.arange(len(scores_BC) + 1))
        sparse = (torch.from_numpy(array).to(scores_BC.device) for array in (offsets, classes_L))
        accumulator.update(scores_BC, *sparse)
    return accumulator.compute()


def _rank_by_sorting(
    logits_BC: Tensor, truth_BC: Tensor, labels_B: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """classes_BK, PERR's precision and the number of positive logits of every video, without looking at a value.

    CUDA sorts rows of up to 4096 in one block each, so all is ranked and no size depends on the data.
    """
    order_BC = logits_BC.sort(dim=1, descending=True, stable=True).indices
    perr_B = _precision_above(truth_BC.gather(1, order_BC), labels_B)
    return order_BC[:, :top_k], perr_B, (logits_BC > 0).sum(dim=1)


def _rank_by_candidates(
    logits_BC: Tensor, truth_BC: Tensor, labels_B: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on a CPU, where it is 4 times faster to look: few logits can be among the top K (see `_top_classes`)."""
    classes_BK = _top_classes(logits_BC, top_k)
    perr_B = _precision_above(truth_BC.gather(1, classes_BK), labels_B)
    predicted_B = (logits_BC.gather(1, classes_BK) > 0).sum(dim=1)
    # The few videos that K predictions do not settle: more labels than that, or more positive logits.
    rest = torch.nonzero((labels_B > top_k) | (predicted_B == top_k)).squeeze(1)
    if len(rest):
        _, perr_B[rest], predicted_B[rest] = _rank_by_sorting(logits_BC[rest], truth_BC[rest], labels_B[rest], top_k)
    return classes_BK, perr_B, predicted_B


def _precision_above(hits: Tensor, depth_B: Tensor) -> Tensor:
    """Share of hits among the first depth_B ranks of every row; 0 at depth 0."""
    ranks = torch.arange(hits.shape[1], device=hits.device)
    return (hits & (ranks < depth_B[:, None])).sum(dim=1).double() / depth_B.clamp(min=1)


def _top_classes(logits_BC: Tensor, top_k: int) -> Tensor:
    """[B, K] classes of the K highest logits of every row, highest first, ties by class index.

    The K-th highest of G >= K group maxima is a lower bound of the K-th highest logit: comparing with it leaves about
    1.1 K candidates a row, found with two vectorised passes (torch.topk keeps a heap, one logit at a time).
    """
    num_videos, num_classes = logits_BC.shape
    groups = -(-4 * top_k // 64) * 64  # whole vectors; more groups, fewer candidates
    logits = logits_BC.numpy()
    if num_classes < 2 * groups:
        _refuse_nan(logits)
        return torch.from_numpy(np.argsort(-logits, axis=1, kind="stable")[:, :top_k])
    # Group g holds the classes g, g + G, ...: neighbours, where classes are sorted by frequency, part.
    grouped = num_classes // groups * groups
    maxima_BG = logits_BC[:, :grouped].reshape(num_videos, grouped // groups, groups).amax(dim=1)
    maxima_BG[:, : num_classes - grouped].clamp_(min=logits_BC[:, grouped:])  # a last, shorter row of neighbours
    _refuse_nan(maxima_BG.numpy())
    bound_B1 = np.partition(maxima_BG.numpy(), groups - top_k, axis=1)[:, groups - top_k, None]
    rows, classes = np.divmod(np.flatnonzero(logits >= bound_B1), num_classes)
    counts_B = np.bincount(rows, minlength=num_videos)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(counts_B) - counts_B, counts_B)
    candidates = np.full((num_videos, counts_B.max(initial=top_k)), np.inf, logits.dtype)  # negated, to sort upwards
    candidates[rows, columns] = -logits[rows, classes]
    candidate_classes = np.zeros(candidates.shape, np.int64)
    candidate_classes[rows, columns] = classes
    best = np.argsort(candidates, axis=1, kind="stable")[:, :top_k]
    return torch.from_numpy(np.take_along_axis(candidate_classes, best, axis=1))


def descending(scores: NDArray[Any]) -> NDArray[np.int64]:
    """np.argsort(-scores, kind="stable"); for float32 ten times faster, as a sort of integers without a permutation."""
    if scores.dtype != np.float32:
        return np.argsort(-scores, kind="stable")
    bits = (0 - scores).view(np.int32)  # a float's bits order like an integer's, but downwards below zero
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | np.arange(len(scores))
    keys.sort()
    return keys & 0xFFFFFFFF


def average_precision(hits: NDArray[np.bool_], num_positives: int) -> float:
    """Sum over the hits of (hits so far / rank), over num_positives; 0 without positives."""
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / max(num_positives, 1))


def _mean_average_precision(
    hits: NDArray[np.bool_], classes: NDArray[np.int32], positives_C: NDArray[np.int64]
) -> float:
    """Mean over the classes with a positive of the average precision in the ranked pool; 0 without any."""
    by_class = np.argsort(classes.astype(np.min_scalar_type(len(positives_C))), kind="stable")  # 16 bits: a radix sort
    hits, classes = hits[by_class], classes[by_class]
    counts_C = np.bincount(classes, minlength=len(positives_C))
    starts_C = np.cumsum(counts_C) - counts_C
    found = np.flatnonzero(hits)
    found_classes = classes[found]
    ranks = found - starts_C[found_classes] + 1
    hits_before_C = np.cumsum(np.bincount(found_classes, minlength=len(positives_C)))
    hits_before_C = np.concatenate([[0], hits_before_C[:-1]])
    precisions = (np.arange(len(found)) - hits_before_C[found_classes] + 1) / ranks
    sums_C = np.bincount(found_classes, weights=precisions, minlength=len(positives_C))
    seen = positives_C > 0
    return float((sums_C[seen] / positives_C[seen]).mean()) if seen.any() else 0.0


def _refuse_nan(scores: NDArray[Any]) -> None:
    """Raises where a video, a row, has a NaN among its best scores: NaN ranks and compares above everything."""
    num_videos = int(np.isnan(scores).any(axis=1).sum())
    if num_videos:
        raise ValueError(f"logits must be numbers, but got NaN in {num_videos} of {len(scores)} videos")
