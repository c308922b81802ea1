"""A step of contrastive pretraining: ours from the cache against a plain PyTorch loop around MoCo v2.

    python benchmarks/pretrain.py [--device cpu|cuda] [--threads 2]

Both train the encoder of the source (towers 2048 and 256, joint 1200) by MoCo v2 with AdamW on the same sample videos
from the same weights, 512 at a time in a new order every epoch, in the precision that `auto` means here. The plain
loop has the structure of facebookresearch/moco and lightly: two encoders, of which a loop over the parameters updates
one; a queue with a pointer, whose size must be a multiple of the batch; a cross-entropy of the logits of the key and
the queue side by side; BatchNorm that splits the batch, with the keys in another order. Its views draw a number and a
row for every value, its DataLoader reads float32 features (normalised beforehand) from memory, and its AdamW is
torch's default. Ours has float16 rows of the cache, normalised in the model, and also measures what
tuner/training/contrastive/pretrain.py measures (accuracy, spread, divergence). A step begins with the request for a
batch and ends with the updated weights. Whole epochs are timed, both in turns; the ratio is the median of the rounds'
ratios. The clock is wall time, which needs a quiet machine; with --threads 1 on a CPU it is CPU time. `data_share` is
the part of a step in which the loop waits for its batch, timed around each `next(batches)` with the device idle
before and after. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from card import show
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from data.batches import Batches
from data.ranges import COUNT
from models.contrastive.queue import Queue
from models.contrastive.views import ViewsConfig
from models.optim import OptimizerConfig
from models.video.fused_mlp import FusedMLPConfig
from tuner.training.config import ContrastiveConfig, PretrainConfig, ProbeConfig
from tuner.training.contrastive import pretrain
from tuner.training.data_config import DataConfig, SampleConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.precision import autocast, uses_bf16

AIM, AIM_DATA_SHARE = 1.0, 0.02
TOWERS, HIDDEN = {"mean_rgb": 2048, "mean_audio": 256}, 1200
DIMENSION, QUEUE, TEMPERATURE, MOMENTUM, GROUPS, CORRUPTION = 128, 4096, 0.2, 0.999, 8, 0.2
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
NEVER = 1_000_000  # epochs, more than the benchmark runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=COUNT.whole, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=COUNT.whole, default=512, help="divides 4096, the queue's (default: %(default)s)"
    )
    parser.add_argument("--videos", type=COUNT.whole, default=8 * 512, help="of the sample (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=COUNT.whole, default=5, help="measurements of each, in turns (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=COUNT.whole, help="in each of these (default: 1 on a CPU, 20 on a GPU)")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if QUEUE % options.batch_size or options.batch_size < 2 * GROUPS:
        parser.error(f"--batch-size must divide {QUEUE} and be at least {2 * GROUPS}, but got {options.batch_size}")
    if options.videos < options.batch_size:
        parser.error(f"--videos must fill a batch of {options.batch_size}, but got {options.videos}")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    epochs = options.epochs or (20 if device.type == "cuda" else 1)
    with tempfile.TemporaryDirectory() as folder:
        sample = SampleConfig(directory=folder, train=options.videos, validate=100)
        config = DataConfig(
            sample=sample,
            train=f"{folder}/train*.tfrecord",
            validate=f"{folder}/validate*.tfrecord",
            cache_folder=folder,
        )
        data = open_dataset(config)
        plain, ours = Plain(data, options.batch_size, device), Ours(data, options.batch_size, device)
        check_same_loss(ours, plain, data)
        milliseconds, shares = measure({"plain": plain, "ours": ours}, options.rounds, epochs, device)
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "clock": "cpu" if clock_of(device) is time.process_time else "wall",
        "precision": "bf16" if uses_bf16(device, "auto") else "fp32",
        "batch_size": options.batch_size,
        "queue": QUEUE,
        "rounds": options.rounds,
        "aim": AIM,
        "aim_data_share": AIM_DATA_SHARE,
    }
    tell(milliseconds, shares, report)


def measure(
    trainers: dict[str, Plain | Ours], rounds: int, epochs: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The milliseconds of a step by way and round, and the share of a step that its batch takes."""
    milliseconds: dict[str, list[float]] = {name: [] for name in trainers}
    for trainer in trainers.values():
        trainer.run_epoch()  # warm: buffers, kernels, the optimizer's state
    for turn in range(rounds):
        for name in trainers if turn % 2 == 0 else reversed(trainers):
            elapsed = timed(trainers[name].run_epoch, epochs, device)
            milliseconds[name].append(1000 * elapsed / epochs / trainers[name].num_steps)
    shares = {}
    for name, trainer in trainers.items():
        trainer.watch.on = True
        elapsed = timed(trainer.run_epoch, epochs, device)
        shares[name] = trainer.watch.seconds / elapsed
    return milliseconds, shares


def timed(epoch: Callable[[], None], epochs: int, device: torch.device) -> float:
    """The seconds of this number of epochs, until the device has finished."""
    clock = clock_of(device)
    synchronize(device)
    began = clock()
    for _ in range(epochs):
        epoch()
    synchronize(device)
    return clock() - began


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU time with one thread on a CPU, else wall time: waiting threads use CPU time, and a GPU uses none."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Watch:
    """Sums the seconds in which a loop waits for its batches, while it is switched on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on, self.seconds = device, False, 0.0

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches; on a GPU, the clock starts when it is idle and stops when the batch has arrived."""
        clock, iterator = clock_of(self.device), iter(batches)
        while True:
            if self.on:
                synchronize(self.device)
            began = clock()
            batch = next(iterator, None)
            if self.on:
                synchronize(self.device)
                self.seconds += clock() - began
            if batch is None:
                return
            yield batch


@dataclass(frozen=True, kw_only=True)
class WatchedDataset(Dataset):
    """A data set whose batches are timed by the watch."""

    watch: Watch

    def pretrain_batches(self, batch_size: int, seed: int, device: torch.device) -> Any:
        """The batches of the data set, timed by the watch."""
        return WatchedBatches(super().pretrain_batches(batch_size, seed, device), self.watch)


class WatchedBatches:
    """The part of `Batches` that pretraining uses, timed by the watch."""

    def __init__(self, batches: Batches, watch: Watch) -> None:
        self.batches, self.watch = batches, watch

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int) -> Iterator[Any]:
        """The batches of one epoch, timed by the watch."""
        return self.watch.over(self.batches.epoch(epoch))


class Ours:
    """One epoch of `tuner.training.contrastive.pretrain.epochs` at a time."""

    def __init__(self, data: Dataset, batch_size: int, device: torch.device) -> None:
        optimizer = OptimizerConfig(kind="adamw", learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        trial = ContrastiveConfig(
            model=FusedMLPConfig(towers=TOWERS, hidden=HIDDEN, dropout=0.0),
            pretrain=PretrainConfig(
                kind="moco_v2",
                temperature=TEMPERATURE,
                dimension=DIMENSION,
                queue=QUEUE,
                momentum=MOMENTUM,
                batch_norm_groups=GROUPS,
                views=ViewsConfig(corruption=CORRUPTION),
                optimizer=optimizer,
                batch_size=batch_size,
                epochs=NEVER,
            ),
            probe=ProbeConfig(optimizer=optimizer),  # has no effect here
        )
        self.watch, self.num_steps = Watch(device), data.train.num_videos // batch_size
        watched = WatchedDataset(**{part.name: getattr(data, part.name) for part in fields(data)}, watch=self.watch)
        self.state = pretrain.begin(trial, data, device=device, seed=1)
        self.epochs = pretrain.epochs(trial, watched, self.state, device=device, seed=1)

    def run_epoch(self) -> None:
        """Trains for one epoch."""
        next(self.epochs)


class SplitBatchNorm(nn.BatchNorm1d):
    """BatchNorm with separate statistics for each of GROUPS parts of the batch, as on that many GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, units] -> [B, units]."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        batch, units = x.shape
        mean, variance = self.running_mean.repeat(GROUPS), self.running_var.repeat(GROUPS)
        weight, bias = self.weight.repeat(GROUPS), self.bias.repeat(GROUPS)
        split = x.view(batch // GROUPS, units * GROUPS)
        out = F.batch_norm(split, mean, variance, weight, bias, True, self.momentum, self.eps)
        self.running_mean.copy_(mean.view(GROUPS, units).mean(dim=0))
        self.running_var.copy_(variance.view(GROUPS, units).mean(dim=0))
        return out.view(batch, units)


class PlainEncoder(nn.Module):
    """The encoder and the head of MoCo v2 of torch's own layers, with the parameters in the order of ours."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, units: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, units), SplitBatchNorm(units), nn.Tanh())

        self.rgb, self.audio = block(1024, TOWERS["mean_rgb"]), block(128, TOWERS["mean_audio"])
        self.joint = block(sum(TOWERS.values()), HIDDEN)
        self.head = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIMENSION))

    def forward(self, features_BD: Tensor) -> Tensor:
        """[B, 1152] -> [B, 128]."""
        rgb, audio = features_BD[:, :1024], features_BD[:, 1024:]
        projected_BF: Tensor = self.head(self.joint(torch.cat([self.rgb(rgb), self.audio(audio)], dim=1)))
        return projected_BF


class PlainMoco(nn.Module):
    """MoCo v2 as in facebookresearch/moco, on one device."""

    queue: Tensor
    pointer: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder_q = PlainEncoder()
        self.encoder_k = copy.deepcopy(self.encoder_q)
        for parameter in self.encoder_k.parameters():
            parameter.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(DIMENSION, QUEUE), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def momentum_update(self) -> None:
        """Updates the momentum encoder."""
        for parameter_q, parameter_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            parameter_k.data = parameter_k.data * MOMENTUM + parameter_q.data * (1.0 - MOMENTUM)

    @torch.no_grad()
    def dequeue_and_enqueue(self, keys_BF: Tensor) -> None:
        """Replaces the oldest keys by these."""
        batch, pointer = len(keys_BF), int(self.pointer)
        assert QUEUE % batch == 0
        self.queue[:, pointer : pointer + batch] = keys_BF.T
        self.pointer[0] = (pointer + batch) % QUEUE

    def forward(self, first_BD: Tensor, second_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Two views -> logits [B, 1 + K] with the own key first, and labels of 0."""
        q = F.normalize(self.encoder_q(first_BD), dim=1)
        with torch.no_grad():
            if self.training:
                self.momentum_update()
            shuffled = torch.randperm(len(second_BD), device=second_BD.device)
            k = F.normalize(self.encoder_k(second_BD[shuffled]), dim=1)[torch.argsort(shuffled)]
        l_pos = torch.einsum("nc,nc->n", q, k).unsqueeze(-1)
        l_neg = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([l_pos, l_neg], dim=1) / TEMPERATURE
        if self.training:
            self.dequeue_and_enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)


class Plain:
    """The plain loop."""

    def __init__(self, data: Dataset, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(1)
        mean_D, variance_D = data.statistics.mean_D.numpy(), data.statistics.variance_D.numpy()
        features_ND = (data.train.features_ND.astype(np.float32) - mean_D) / np.sqrt(variance_D + 1e-12)
        self.loader = DataLoader(
            TensorDataset(torch.from_numpy(features_ND)), batch_size=batch_size, shuffle=True, drop_last=True
        )
        self.device, self.watch, self.num_steps = device, Watch(device), len(self.loader)
        self.model = PlainMoco().to(device)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.cross_entropy = nn.CrossEntropyLoss()
        self.corruption = CORRUPTION

    def run_epoch(self) -> None:
        """Trains for one epoch."""
        self.model.train()
        total_loss = torch.zeros((), device=self.device)
        for features_BD in self.watch.over(self.batches()):
            with autocast(self.device, "auto"):
                loss = self.loss(features_BD)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total_loss += loss.detach()
        assert torch.isfinite(total_loss)

    def batches(self) -> Iterator[Tensor]:
        """The batches of one epoch."""
        for (features_BD,) in self.loader:
            yield features_BD.to(self.device)

    def loss(self, features_BD: Tensor) -> Tensor:
        """The contrastive loss of one batch."""
        logits, labels = self.model(self.view(features_BD), self.view(features_BD))
        loss: Tensor = self.cross_entropy(logits, labels)
        return loss

    def view(self, features_BD: Tensor) -> Tensor:
        """Replaces each value, with some probability, by that of a random video of the batch."""
        corrupted = torch.rand(features_BD.shape, device=features_BD.device) < self.corruption
        rows = torch.randint(len(features_BD), features_BD.shape, device=features_BD.device)
        return torch.where(corrupted, features_BD.gather(0, rows), features_BD)


@torch.no_grad()
def check_same_loss(ours: Ours, plain: Plain, data: Dataset) -> None:
    """Copies weights and keys of ours to the plain model, and checks that without views both have the same loss."""
    contrast, moco = ours.state.contrast, plain.model
    mine = [*contrast.encoder.parameters(), *contrast.projectors.parameters()]
    for encoder in (moco.encoder_q, moco.encoder_k):
        for parameter, other in zip(encoder.parameters(), mine, strict=True):
            parameter.copy_(other)
    (queue,) = contrast.queues
    assert isinstance(queue, Queue)
    moco.queue.copy_(queue.keys.T)
    contrast.eval()
    moco.eval()
    views, contrast.views, plain.corruption = contrast.views, ViewsConfig(corruption=0.0), 0.0
    features_BD = torch.from_numpy(np.array(data.train.features_ND[:64])).to(plain.device)
    normalized_BD = plain.loader.dataset[:64][0].to(plain.device)
    losses = float(contrast(features_BD, 0.0, ours.state.generator).loss), float(plain.loss(normalized_BD))
    contrast.views, plain.corruption = views, CORRUPTION
    assert abs(losses[0] / losses[1] - 1) < 1e-4, f"the two losses differ: {losses}"


def tell(milliseconds: dict[str, list[float]], shares: dict[str, float], report: dict[str, Any]) -> None:
    names = {"plain": "plain PyTorch", "ours": "ours"}
    table = [["batches of " + str(report["batch_size"]), "ms/step", "videos/s"]]
    for name, label in names.items():
        speed = 1000 * report["batch_size"] / median(milliseconds[name])
        table.append([label, f"{median(milliseconds[name]):.1f}", f"{speed:,.0f}"])
    ratios = [p / o for p, o in zip(milliseconds["plain"], milliseconds["ours"], strict=True)]
    device = f"CPU threads: {report['threads']}" if report["device"] == "cpu" else report["device"]
    notes = [
        f"ratio {median(ratios):.2f} (lowest round {min(ratios):.2f}; aim {AIM})",
        f"of a step, its batch takes {shares['ours']:.2%} of ours (aim {AIM_DATA_SHARE:.0%}) "
        f"and {shares['plain']:.2%} of the plain one",
    ]
    numbers = {
        "ratio": round(median(ratios), 2),
        "ratio_lowest": round(min(ratios), 2),
        **{f"milliseconds_{name}": round(median(rounds), 3) for name, rounds in milliseconds.items()},
        **{
            f"videos_per_second_{name}": round(1000 * report["batch_size"] / median(rounds))
            for name, rounds in milliseconds.items()
        },
        "data_share": round(shares["ours"], 4),
        "data_share_plain": round(shares["plain"], 4),
    }
    title = f"a step of MoCo v2 with AdamW on the published encoder, {report['precision']}, {device}"
    show("pretrain", title, table, notes, numbers | report)


if __name__ == "__main__":
    main()
