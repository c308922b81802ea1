"""Metrics of an evaluation: our accumulator against a Python accumulator in the form of google/youtube-8m.

    python benchmarks/gap.py [--videos 16384] [--stream 250000]

The peer is our own implementation of that evaluation: lists of each video's top 20, lists for each class, heaps, a
seeded shuffle against ties, and average precision number by number. It computes GAP, mAP, Hit@1 and PERR, but no
loss; ours computes these and more, and is timed without its loss (`ratio`) and with it. The peer is also timed with
GAP alone (`ratio_to_gap_alone`; ours still computes everything). Each runs on one core, in turns, on the same logits
without ties. The least CPU time of the rounds counts, and the results must be equal to 1e-6.

Before that, logits of --stream videos x 3,862 classes pass through ours batch by batch, loss included. Reported are
the seconds, without the time that makes the logits, and the growth of the process. The last line is one JSON object.
"""

import argparse
import heapq
import os
import random
import resource
import time
from collections.abc import Callable

from data.ranges import COUNT, Range

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy start their threads

import numpy as np
import torch
from card import show
from numpy.typing import NDArray
from torch import Tensor

from models.metrics import Accumulator

AIM = 20
NUM_CLASSES, BATCH, TOP_K = 3862, 1024, 20
Batch = tuple[Tensor, Tensor, Tensor]  # logits_BC, label_offsets, label_indices
Dense = tuple[NDArray[np.float32], NDArray[np.float32]]  # scores and labels [B, C], as the peer takes them
Metrics = dict[str, float]
Lists = list[list[float]]  # by class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--videos", type=COUNT.whole, default=16 * BATCH, help="of the comparison (default: %(default)s)"
    )
    parser.add_argument(
        "--stream",
        type=Range(0, COUNT.high).whole,
        default=250_000,
        help="of the long run (default: %(default)s; 0: none)",
    )
    parser.add_argument(
        "--rounds", type=COUNT.whole, default=3, help="measurements of each, in turns (default: %(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    streamed = stream(options.stream) if options.stream else {}  # first, as an earlier peak would hide its growth
    report = compare(options.videos, options.rounds) | streamed
    tell(report)


def compare(num_videos: int, rounds: int) -> dict[str, float]:
    batches = [make_batch(seed) for seed in range(-(-num_videos // BATCH))]
    dense = [(logits.numpy(), as_dense(offsets, indices)) for logits, offsets, indices in batches]
    ways: dict[str, Callable[[], Metrics]] = {
        "ours": lambda: ours(batches, loss=False),
        "ours_with_loss": lambda: ours(batches, loss=True),
        "published_gap": lambda: PublishedGap().run(dense),
        "published_all": lambda: PublishedMetrics().run(dense),
    }
    expected = ways["ours"]()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            found = way()
            seconds[name].append(time.process_time() - began)
            for metric in found.keys() & expected.keys():
                assert abs(found[metric] - expected[metric]) < 1e-6, f"{name} and ours differ in {metric}"
    num_videos = len(batches) * BATCH
    speed = {name: num_videos / min(rounds_of_way) for name, rounds_of_way in seconds.items()}
    return {
        "ratio": round(speed["ours"] / speed["published_all"], 1),
        "ratio_to_gap_alone": round(speed["ours"] / speed["published_gap"], 1),
        "aim": AIM,
        "videos_per_second": round(speed["ours"]),
        "videos_per_second_with_loss": round(speed["ours_with_loss"]),
        "published_gap_videos_per_second": round(speed["published_gap"]),
        "published_all_videos_per_second": round(speed["published_all"]),
        "videos": num_videos,
        "rounds": rounds,
        "gap": expected["gap"],
    }


def make_batch(seed: int) -> Batch:
    """Logits of a model that has learned something, and 1 to 5 labels for each video."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(BATCH, NUM_CLASSES, generator=generator).mul_(2).sub_(6)
    counts = torch.randint(1, 6, (BATCH,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    first = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
    place = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts)
    indices = (first.repeat_interleave(counts) + 611 * place) % NUM_CLASSES
    logits[torch.arange(BATCH).repeat_interleave(counts), indices] += 5
    return logits, offsets, indices


def as_dense(offsets: Tensor, indices: Tensor) -> NDArray[np.float32]:
    labels = torch.zeros(BATCH, NUM_CLASSES)
    labels[torch.arange(BATCH).repeat_interleave(offsets.diff()), indices] = 1
    return labels.numpy()


def ours(batches: list[Batch], loss: bool) -> Metrics:
    accumulator = Accumulator(NUM_CLASSES, TOP_K, loss=loss)
    for logits, offsets, indices in batches:
        accumulator.update(logits, offsets, indices)
    return accumulator.compute()


class PublishedAveragePrecision:
    """A heap of (score, label), and the number of positives."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, float]] = []
        self.positives = 0.0

    def accumulate(self, scores: list[float], labels: list[float], positives: float) -> None:
        """Pushes scores with their labels, one after another."""
        self.positives += positives
        for pair in zip(scores, labels, strict=True):
            heapq.heappush(self.heap, pair)

    def value(self) -> float:
        """The average precision of everything pushed."""
        if self.positives == 0 or not self.heap:
            return 0.0
        scores, labels = (np.array(column) for column in zip(*self.heap, strict=True))
        order = list(range(len(scores)))
        random.Random(0).shuffle(order)
        order.sort(key=lambda i: scores[i], reverse=True)
        found, total = 0.0, 0.0
        for rank, i in enumerate(order, start=1):
            if labels[i] > 0:
                found += 1
                total += found / rank
        return total / self.positives


def top_k_by_class(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> tuple[Lists, Lists, list[float]]:
    """For every class, the scores and labels of the videos with it in their top 20, and its positives."""
    triplets: list[tuple[int, float, float]] = []
    for video in range(len(scores)):
        top = np.argpartition(scores[video], -TOP_K)[-TOP_K:]
        triplets.extend((c, scores[video][c], labels[video][c]) for c in top)
    class_scores: Lists = [[] for _ in range(NUM_CLASSES)]
    class_labels: Lists = [[] for _ in range(NUM_CLASSES)]
    for c, score, label in triplets:
        class_scores[c].append(score)
        class_labels[c].append(label)
    return class_scores, class_labels, [float(np.sum(labels[:, c])) for c in range(NUM_CLASSES)]


def flat(lists: Lists) -> list[float]:
    return [item for sublist in lists for item in sublist]


class PublishedGap:
    """The GAP, without other metrics."""

    def __init__(self) -> None:
        self.pool = PublishedAveragePrecision()

    def run(self, batches: list[Dense]) -> Metrics:
        """Adds batch after batch, as the evaluation of google/youtube-8m does, and returns the metrics."""
        for scores, labels in batches:
            class_scores, class_labels, positives = top_k_by_class(scores, labels)
            self.pool.accumulate(flat(class_scores), flat(class_labels), sum(positives))
        return {"gap": self.pool.value()}


class PublishedMetrics:
    """GAP, mAP, Hit@1 and PERR together."""

    def __init__(self) -> None:
        self.pool = PublishedAveragePrecision()
        self.classes = [PublishedAveragePrecision() for _ in range(NUM_CLASSES)]
        self.hits = self.perr = 0.0
        self.videos = 0

    def run(self, batches: list[Dense]) -> Metrics:
        """Adds batch after batch, as the evaluation of google/youtube-8m does, and returns the metrics."""
        for scores, labels in batches:
            self.videos += len(scores)
            self.hits += labels[np.arange(len(scores)), scores.argmax(axis=1)].sum()
            self.perr += sum(map(self.precision_at_equal_recall, scores, labels))
            class_scores, class_labels, positives = top_k_by_class(scores, labels)
            for c, average in enumerate(self.classes):
                average.accumulate(class_scores[c], class_labels[c], positives[c])
            self.pool.accumulate(flat(class_scores), flat(class_labels), sum(positives))
        averages = [average.value() for average in self.classes if average.positives]
        return {
            "gap": self.pool.value(),
            "map": sum(averages) / len(averages),
            "hit_at_1": self.hits / self.videos,
            "perr": self.perr / self.videos,
        }

    @staticmethod
    def precision_at_equal_recall(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
        """The PERR of one video."""
        num_labels = int(np.sum(labels))
        top = np.argpartition(scores, -num_labels)[-num_labels:]
        return float(sum(labels[c] for c in top)) / num_labels


def stream(num_videos: int) -> dict[str, float]:
    """Feeds batches that are made and freed one after another, from one set of random logits that is rolled."""
    logits, offsets, indices = make_batch(0)
    accumulator = Accumulator(NUM_CLASSES, TOP_K)
    accumulator.update(logits, offsets, indices)  # warm
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for number in range(1, -(-num_videos // BATCH)):
        logits = logits.roll(1, dims=1)
        began = time.process_time()
        accumulator.update(logits, offsets, indices)
        seconds += time.process_time() - began
        if number % 32 == 0:
            logits = make_batch(number)[0]
    began = time.process_time()
    found = accumulator.compute()
    return {
        "stream_videos": int(found["num_videos"]),
        "stream_seconds": round(seconds + time.process_time() - began, 2),
        "stream_compute_seconds": round(time.process_time() - began, 2),
        "stream_growth_mib": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
    }


def tell(report: dict[str, float]) -> None:
    speeds = {
        "published form, GAP alone": report["published_gap_videos_per_second"],
        "published form, GAP, mAP, Hit@1, PERR": report["published_all_videos_per_second"],
        "ours, all of it": report["videos_per_second"],
        "ours, all of it and the loss": report["videos_per_second_with_loss"],
    }
    table = [["one core", "videos/s"], *([name, f"{speed:,}"] for name, speed in speeds.items())]
    notes = [f"ratio {report['ratio']} (aim {AIM}); to GAP alone {report['ratio_to_gap_alone']}"]
    if "stream_videos" in report:
        notes.append(
            f"{report['stream_videos']:,} videos batch by batch: {report['stream_seconds']} s, "
            f"{report['stream_growth_mib']} MiB more at the peak"
        )
    title = f"metrics of {report['videos']:,} videos x {NUM_CLASSES:,} classes, equal to 1e-6"
    show("gap", title, table, notes, report)


if __name__ == "__main__":
    main()
