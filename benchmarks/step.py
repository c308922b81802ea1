"""A training step: tuner.training.supervised against the plain PyTorch loop that a user would write.

    python benchmarks/step.py [--device cpu|cuda] [--threads 2] [--no-graph]

Both train the fused MLP of the source with Adam on the same sample videos from the same weights, in batches of 1024
in a new order every epoch. The plain loop has a map-style Dataset over float32 arrays (normalised beforehand) that
makes dense targets of zeros and ones, a DataLoader without workers, and torch's layers, loss and optimizer in
float32. Ours has float16 rows of the cache, normalised in the model, and sparse labels; once in float32, and once in
the precision that `auto` means here. Both also run with weights of the positives and an l2 penalty. A step begins
with the request for a batch and ends with the updated weights. On a GPU our features are resident and a CUDA graph
takes our steps, unless --no-graph is given. Whole epochs are timed, all ways in turns; the ratio is the median of the
rounds' ratios. The clock is wall time, which needs a quiet machine; with --threads 1 on a CPU it is CPU time. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from card import show
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models
from data.ranges import COUNT
from data.schema import NUM_CLASSES
from models.losses import LossConfig
from models.losses.weights import positive_weights
from models.optim import OptimizerConfig
from models.optim import build as build_optimizer
from models.video.fused_mlp import FusedMLPConfig
from tuner.training.config import TrainingConfig, TrialConfig
from tuner.training.data_config import DataConfig, SampleConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.precision import Precision, uses_bf16
from tuner.training.state import TrainingState
from tuner.training.supervised import TrainingStep

AIM = {"bf16": 2.5, "fp32": 1.0}
CAPABILITIES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")  # those that determine the speed of matrix products
LEARNING_RATE, DROPOUT, L2, POS_WEIGHT_POWER = 1e-3, 0.5, 1.0, 0.5
PRECISIONS: tuple[Precision, ...] = ("fp32", "auto")  # of ours
Way = tuple[str, bool]  # "plain" or a precision of ours; whether with weights of the positives and l2
WAYS: list[Way] = [(name, weighted) for weighted in (False, True) for name in ("plain", *PRECISIONS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=COUNT.whole, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--batch-size", type=COUNT.whole, default=1024, help="default: %(default)s")
    parser.add_argument("--videos", type=COUNT.whole, default=6 * 1024, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=COUNT.whole, default=5, help="measurements of each, in turns (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=COUNT.whole, help="in each of these (default: 1 on a CPU, 10 on a GPU)")
    parser.add_argument("--no-graph", action="store_true", help="ours without a CUDA graph")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    epochs = options.epochs or (10 if device.type == "cuda" else 1)
    with tempfile.TemporaryDirectory() as folder:
        sample = SampleConfig(directory=folder, train=options.videos, validate=100)
        config = DataConfig(
            sample=sample,
            train=f"{folder}/train*.tfrecord",
            validate=f"{folder}/validate*.tfrecord",
            cache_folder=folder,
            resident=True,
        )
        graph = device.type == "cuda" and not options.no_graph
        milliseconds, shares = measure(open_dataset(config), options.batch_size, device, options.rounds, epochs, graph)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    precision = "bf16" if uses_bf16(device, "auto") else "fp32"
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "clock": "cpu" if clock_of(device) is time.process_time else "wall",
        "capabilities": [name for name in CAPABILITIES if cpu.get(name)],
        "auto": precision,
        "cuda_graph": device.type == "cuda" and not options.no_graph,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "aim": AIM[precision],
        "aim_fp32": AIM["fp32"],
    }
    tell(milliseconds, shares, report)


def measure(
    data: Dataset, batch_size: int, device: torch.device, rounds: int, epochs: int, graph: bool
) -> tuple[dict[Way, list[float]], dict[str, float]]:
    """The milliseconds of a step by way and round, and the share of a step that its batch takes."""
    trainers: dict[Way, Ours | Plain] = {}
    for weighted in (False, True):
        plain = Plain(data, batch_size, device, weighted=weighted)
        ours = {
            precision: Ours(data, batch_size, device, precision, weighted=weighted, graph=graph)
            for precision in PRECISIONS
        }
        check_same_loss(ours["fp32"], plain)
        trainers["plain", weighted] = plain
        trainers.update({(precision, weighted): way for precision, way in ours.items()})
    milliseconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    steps = {way: epochs * len(trainer) for way, trainer in trainers.items()}
    for trainer in trainers.values():
        trainer.run_epoch()  # warm: buffers, kernels, the optimizer's state
    clock = clock_of(device)
    for turn in range(rounds):
        for way in WAYS if turn % 2 == 0 else reversed(WAYS):
            milliseconds[way].append(timed(trainers[way].run_epoch, epochs, device, clock) / steps[way])
    shares = {}
    for name in ("plain", "auto"):
        alone = min(timed(trainers[name, False].read_epoch, epochs, device, clock) for _ in range(3))
        shares[name] = alone / steps[name, False] / median(milliseconds[name, False])
    return milliseconds, shares


def timed(epoch: Callable[[], None], epochs: int, device: torch.device, clock: Callable[[], float]) -> float:
    """The milliseconds of this number of epochs, until the device has finished."""
    synchronize(device)
    began = clock()
    for _ in range(epochs):
        epoch()
    synchronize(device)
    return 1000 * (clock() - began)


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time with one thread on a CPU, else wall time: waiting threads use CPU time, and a GPU uses none."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """The part of `tuner.training.supervised.epochs` between two validations."""

    def __init__(
        self, data: Dataset, batch_size: int, device: torch.device, precision: Precision, *, weighted: bool, graph: bool
    ) -> None:
        torch.manual_seed(1)
        trial = TrialConfig(
            model=FusedMLPConfig(towers={"mean_rgb": 2048, "mean_audio": 256}, hidden=1200, dropout=DROPOUT),
            optimizer=OptimizerConfig(kind="adam", learning_rate=LEARNING_RATE),
            loss=LossConfig(l2=L2, pos_weight_power=POS_WEIGHT_POWER) if weighted else LossConfig(),
            training=TrainingConfig(batch_size=batch_size, precision=precision, cuda_graph=graph),
        )
        self.model = models.build(trial.model, data.sizes, data.statistics).to(device)
        optimizer = build_optimizer(trial.optimizer, self.model.parameters())
        state = TrainingState(
            model=self.model, optimizer=optimizer, bootstrap=torch.Generator(device=device).manual_seed(1)
        )
        self.batches = data.train_batches(batch_size, 1, device)
        self.step = TrainingStep(
            trial, data, state, device=device, seed=1, examples_per_epoch=len(self.batches) * batch_size
        )
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.batches)

    def run_epoch(self) -> None:
        """Trains for one epoch."""
        self.model.train()
        self.step.run_epoch(self.batches.epoch(self.epoch), self.epoch)
        self.epoch += 1

    def read_epoch(self) -> None:
        """Reads the batches of one epoch without training."""
        for _ in self.batches.epoch(self.epoch):
            pass
        self.epoch += 1


class Videos(torch.utils.data.Dataset[tuple[NDArray[np.float32], Tensor]]):
    """A user's map-style data set: float32 features and a dense target of zeros and ones for each video."""

    def __init__(self, features_ND: NDArray[np.float32], labels: list[NDArray[np.int64]]) -> None:
        self.features_ND, self.labels = features_ND, labels

    def __len__(self) -> int:
        return len(self.features_ND)

    def __getitem__(self, video: int) -> tuple[NDArray[np.float32], Tensor]:
        target_C = torch.zeros(NUM_CLASSES)
        target_C[self.labels[video]] = 1.0
        return self.features_ND[video], target_C


class PlainMLP(nn.Module):
    """The fused MLP of torch's own layers, with its parameters in the order of ours."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, units: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, units), nn.BatchNorm1d(units), nn.Tanh())

        self.rgb, self.audio = block(1024, 2048), block(128, 256)
        self.dropout = nn.Dropout(DROPOUT)
        self.joint = block(2048 + 256, 1200)
        self.head = nn.Linear(1200, NUM_CLASSES)

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, 1152] -> [B, C]."""
        rgb, audio = features_BD[:, :1024], features_BD[:, 1024:]
        towers = torch.cat([self.rgb(rgb), self.audio(audio)], dim=1)
        logits_BC: Tensor = self.head(self.joint(self.dropout(towers)))
        return logits_BC


class Plain:
    """The plain loop."""

    def __init__(self, data: Dataset, batch_size: int, device: torch.device, *, weighted: bool) -> None:
        torch.manual_seed(1)
        mean_D, variance_D = data.statistics.mean_D.numpy(), data.statistics.variance_D.numpy()
        features_ND = (data.train.features_ND.astype(np.float32) - mean_D) / np.sqrt(variance_D + 1e-12)
        labels = np.split(data.train.label_indices.astype(np.int64), data.train.label_offsets[1:-1])
        batch_size = min(batch_size, len(features_ND))
        self.loader: DataLoader[Any] = DataLoader(
            Videos(features_ND, labels), batch_size=batch_size, shuffle=True, num_workers=0, drop_last=True
        )
        self.device, self.weighted = device, weighted
        self.model = PlainMLP().to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)
        statistics, pos_weights_C = data.statistics, None
        if weighted:
            pos_weights_C = positive_weights(statistics.label_counts_C, statistics.num_videos, POS_WEIGHT_POWER)
        self.cross_entropy = nn.BCEWithLogitsLoss(reduction="sum", pos_weight=pos_weights_C).to(device)

    def __len__(self) -> int:
        return len(self.loader)

    def run_epoch(self) -> None:
        """Trains for one epoch."""
        self.model.train()
        for features_BD, targets_BC in self.loader:
            features_BD, targets_BC = features_BD.to(self.device), targets_BC.to(self.device)
            loss = self.cross_entropy(self.model(features_BD), targets_BC) / len(features_BD)
            if self.weighted:
                for layer in self.model.modules():
                    if isinstance(layer, nn.Linear):
                        loss = loss + L2 / 2 * layer.weight.square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def read_epoch(self) -> None:
        """Reads the batches of one epoch without training."""
        for features_BD, targets_BC in self.loader:
            features_BD, targets_BC = features_BD.to(self.device), targets_BC.to(self.device)


@torch.no_grad()
def check_same_loss(ours: Ours, plain: Plain) -> None:
    """Copies the weights of ours to the plain model, and checks that both then have the same loss."""
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        theirs.copy_(mine)
    totals = [0.0, 0.0]
    ours.model.eval()
    plain.model.eval()
    for batch in ours.batches.epoch(0):
        totals[0] += float(ours.step.objective(ours.model(*batch.inputs), batch)) * len(batch.rows)
        videos = plain.loader.dataset
        features, targets = zip(*(videos[row] for row in batch.rows.tolist()), strict=True)
        features_BD, targets_BC = torch.from_numpy(np.stack(features)), torch.stack(targets)
        logits_BC = plain.model(features_BD.to(plain.device))
        totals[1] += float(plain.cross_entropy(logits_BC, targets_BC.to(plain.device)))
    assert abs(totals[0] / totals[1] - 1) < 1e-4, f"the two losses differ: {totals}"


def tell(milliseconds: dict[Way, list[float]], shares: dict[str, float], report: dict[str, Any]) -> None:
    names = {"plain": "plain PyTorch, float32", "fp32": "ours, float32", "auto": f"ours, auto ({report['auto']})"}
    table = [["batches of " + str(report["batch_size"]), "ms/step", "videos/s", "ratio"]]
    ratios = {}
    for name, weighted in WAYS:
        rounds = milliseconds[name, weighted]
        ratios[name, weighted] = median(p / o for p, o in zip(milliseconds["plain", weighted], rounds, strict=True))
        speed = 1000 * report["batch_size"] / median(rounds)
        label = names[name] + (", pos weights + l2" if weighted else "")
        table.append([label, f"{median(rounds):.1f}", f"{speed:,.0f}", f"{ratios[name, weighted]:.2f}"])
    device = f"CPU threads: {report['threads']}" if report["device"] == "cpu" else report["device"]
    notes = [
        f"ratio {ratios['auto', False]:.2f} (aim {report['aim']}), in float32 {ratios['fp32', False]:.2f} "
        f"(aim {AIM['fp32']})",
        f"of a step, its batch takes {shares['auto']:.1%} of ours (auto) and {shares['plain']:.1%} of the plain one",
    ]
    suffix = {False: "", True: "_weighted"}
    numbers = {
        "ratio": round(ratios["auto", False], 2),
        **{
            f"ratio_{n}{suffix[w]}": round(r, 2)
            for (n, w), r in ratios.items()
            if n != "plain" and (n, w) != ("auto", False)
        },
        "ratio_fp32_lowest": round(
            min(p / o for p, o in zip(milliseconds["plain", False], milliseconds["fp32", False], strict=True)), 2
        ),
        **{f"milliseconds_{n}{suffix[w]}": round(median(r), 3) for (n, w), r in milliseconds.items()},
        "data_share": round(shares["auto"], 4),
        "data_share_plain": round(shares["plain"], 4),
    }
    show("step", f"a training step of the published fused MLP with Adam, {device}", table, notes, numbers | report)


if __name__ == "__main__":
    main()
