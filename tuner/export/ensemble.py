"""Several trials of a search -> one model that gives the weighted mean of their probabilities.

    python -m tuner.best --ensemble K [--bagging] [--weights equal] [--size-limit MIB] [--half] [--export]

The members are the K best trials; with `--bagging` the K best whose training videos are bootstrap samples of their own.
Their weights come from the validation videos (tuner/export/weighting.py). The model is exported as any other is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.batches import Batch, Batches, sample_rows
from data.cache.store import Cache
from models.ensemble import Ensemble
from models.ragged import cells_of
from tuner.errors import NothingToExport, TunerError
from tuner.export import writer as export
from tuner.export.weighting import TOP_K, Predictions, Weighting, choose
from tuner.export.writer import Subject
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.training.config import ContrastiveConfig
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.precision import Precision, forward

if TYPE_CHECKING:
    from tuner.config.experiment import Experiment

MIB = 2**20
# Videos that choose the weights; of more, a seeded sample: a few numbers need no more, and it takes time and memory.
MOST_VIDEOS, VIDEO_SEED = 20_000, 0
CPU = torch.device("cpu")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    count: int  # members
    bagging: bool = False  # only trials on bootstrap samples of their own
    weights: Literal["validation", "equal"] = "validation"
    size_limit: float | None = None  # MiB that model.safetensors may have
    half: bool = False  # weight matrices are stored as float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A trial's model in an ensemble."""

    trial: TrialHistory
    epoch: int  # whose weights they are
    model: nn.Module

    @property
    def gap(self) -> float:
        """Of that epoch, as the trial reported it."""
        return float(self.trial.reports[self.epoch]["gap"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An ensemble and what is known of it."""

    members: list[Member]  # best first
    weights: list[float]
    model: Ensemble
    precision: Precision
    half: bool
    weighting: Weighting | None  # None: equal weights were asked for, or there is one member
    member_scores: list[dict[str, dict[str, float]]]  # of each member, by split
    scores: dict[str, dict[str, float]]  # of the ensemble

    def subject(self, experiment: Experiment) -> Subject:
        """What an export of it is."""
        members = [
            {
                "number": member.trial.number,
                "id": member.trial.id,
                "epoch": member.epoch,
                "gap": scores["validate"]["gap"],
                "weight": weight,
                "model": asdict(experiment.trial_config(member.trial.values).model),
            }
            for member, weight, scores in zip(self.members, self.weights, self.member_scores, strict=True)
        ]
        return Subject(
            model=self.model,
            trials=[member.trial for member in self.members],
            config={"model": {"kind": "ensemble", "members": members}, "precision": self.precision},
            scores=self.scores,
            half=self.half,
        )


def build(search_directory: Place, experiment: Experiment, search: SearchHistory, options: Options, say: Say) -> Built:
    """Choose the members, weigh them, and score all on the whole of `validate` (and `test`).

    Raises:
        NothingToExport: no trial will do.
        TunerError: not even one member keeps to the size limit.
        DataError: the validation shards are not at hand.
    """
    members = _within_limit(_members(search_directory, experiment, search, options, say), options, say)
    precision = _precision(experiment, members)
    splits = _splits(experiment, search)
    weighting = None
    weights = np.full(len(members), 1 / len(members))
    if options.weights == "validation" and len(members) > 1:
        weighting = choose(_predictions([member.model for member in members], splits["validate"], precision))
        weights = weighting.weights_M
    if not weights.all():
        left_out = ", ".join(_name(member) for member, weight in zip(members, weights, strict=True) if not weight)
        say(f"left out, for the ensemble is no better with: {left_out}")
    members = [member for member, weight in zip(members, weights, strict=True) if weight]
    model = Ensemble([member.model for member in members], weights[weights > 0].tolist()).eval().requires_grad_(False)
    return Built(
        members=members,
        weights=weights[weights > 0].tolist(),
        model=model,
        precision=precision,
        half=options.half,
        weighting=weighting,
        member_scores=[_scores(member.model, splits, precision) for member in members],
        scores=_scores(model, splits, precision),
    )


# ---------------------------------------------------------------------------------------------------------- the members


def _members(
    search_directory: Place, experiment: Experiment, search: SearchHistory, options: Options, say: Say
) -> list[Member]:
    """The best trials that can be loaded, at most as many as are asked for."""
    members: list[Member] = []
    candidates = _bootstrapped(experiment, search, say) if options.bagging else search.finished
    for trial in candidates:
        if len(members) == options.count:
            break
        try:
            checkpoint = export.best_checkpoint(search_directory, trial, say)
        except NothingToExport as error:
            say(f"{error}; it is left out")
            continue
        model = export.load_checkpoint(checkpoint, experiment, trial, CPU)
        members.append(Member(trial=trial, epoch=export.epoch_of(checkpoint), model=model))
    of = f"search {search.id} of {search.experiment}"
    if not members:
        wanted = "finished trial on a bootstrap sample (loss.bootstrap: fixed)" if options.bagging else "finished trial"
        raise NothingToExport(f"{of}: no {wanted} with a whole checkpoint, so there is no ensemble")
    if len(members) < options.count:
        say(f"{of} has {len(members)} such trials, not {options.count}: the ensemble is made of these")
    if options.half:
        for member in members:
            export.round_to_half(member.model)
    return members


def _bootstrapped(experiment: Experiment, search: SearchHistory, say: Say) -> list[TrialHistory]:
    """The finished trials with a fixed bootstrap sample, best first; of several with one sample, the best."""
    by_sample: dict[int, TrialHistory] = {}
    found = 0
    for trial in search.finished:
        settings = experiment.trial_config(trial.values)
        loss = settings.probe.loss if isinstance(settings, ContrastiveConfig) else settings.loss
        if loss.bootstrap == "fixed":
            found += 1
            by_sample.setdefault(settings.seed(trial.number), trial)
    if found > len(by_sample):
        say(
            f"{found} trials have loss.bootstrap: fixed, but together {len(by_sample)} bootstrap samples: the seed "
            "draws the sample, and training.seed: per_trial gives every trial its own"
        )
    return list(by_sample.values())


def _within_limit(members: list[Member], options: Options, say: Say) -> list[Member]:
    """As many of the best as keep to the size limit."""
    if options.size_limit is None:
        return members
    kept = members
    while (size := _mib(kept, options.half)) > options.size_limit:
        if len(kept) == 1:
            hint = "" if options.half else f"; --half stores it in {_mib(kept, half=True):.1f} MiB"
            raise TunerError(
                f"--size-limit {options.size_limit:g}: {_name(kept[0])} alone takes {size:.1f} MiB{hint}: "
                "give a larger limit"
            )
        say(f"{len(kept)} members take {size:.1f} MiB, more than {options.size_limit:g}: {_name(kept[-1])} is dropped")
        kept = kept[:-1]
    return kept


def _mib(members: Sequence[Member], half: bool) -> float:
    """The size of model.safetensors, rounded up a little."""
    model = Ensemble([member.model for member in members], [1 / len(members)] * len(members))
    return export.stored_bytes(model, half=half) / MIB


def _name(member: Member) -> str:
    return f"trial {member.trial.number:03d} (GAP {member.gap:.4f})"


def _precision(experiment: Experiment, members: Iterable[Member]) -> Precision:
    """That of all members; fp32, in which all are right, where they differ."""
    precisions = {experiment.trial_config(member.trial.values).training.precision for member in members}
    return precisions.pop() if len(precisions) == 1 else "fp32"


# ----------------------------------------------------------------------------------------------------------- the scores


def _splits(experiment: Experiment, search: SearchHistory) -> dict[str, Cache]:
    data = experiment.data
    splits = {"validate": data.open(data.validate, fingerprint=search.fingerprint.split("-")[1])}
    if data.test is not None:
        splits["test"] = data.open(data.test)
    return splits


def _scores(model: nn.Module, splits: dict[str, Cache], precision: Precision) -> dict[str, dict[str, float]]:
    return {
        name: evaluate(model, Batches(cache, batch_size=batch_size_of(cache.schema), shuffle=False), precision)
        for name, cache in splits.items()
    }


def _predictions(models: Sequence[nn.Module], cache: Cache, precision: Precision) -> Predictions:
    """What all members say of the videos that choose the weights."""
    rows = None
    if cache.num_videos > MOST_VIDEOS:
        rows = sample_rows(cache.num_videos, MOST_VIDEOS / cache.num_videos, VIDEO_SEED)
    parts = list(
        _parts(models, Batches(cache, batch_size=batch_size_of(cache.schema), shuffle=False, rows=rows), precision)
    )
    width = max(part.hits_NU.shape[1] for part in parts)
    beyond = [width - part.hits_NU.shape[1] for part in parts]
    probabilities = [
        np.pad(part.probabilities_MNU, ((0, 0), (0, 0), (0, more)), constant_values=-1)
        for part, more in zip(parts, beyond, strict=True)
    ]
    hits = [np.pad(part.hits_NU, ((0, 0), (0, more))) for part, more in zip(parts, beyond, strict=True)]
    return Predictions(
        probabilities_MNU=np.concatenate(probabilities, axis=1),
        hits_NU=np.concatenate(hits),
        positives_N=np.concatenate([part.positives_N for part in parts]),
    )


def _parts(models: Sequence[nn.Module], batches: Batches, precision: Precision) -> Iterator[Predictions]:
    """Batch by batch."""
    for batch in batches.epoch(0):
        yield _kept([forward(model, batch, precision).float() for model in models], batch)


def _kept(logits_MBC: Sequence[Tensor], batch: Batch) -> Predictions:
    """Of every video the classes that are among the best of a member, and rated."""
    num_videos, num_classes = logits_MBC[0].shape
    kept_BC = torch.zeros(num_videos, num_classes, dtype=torch.bool)
    for logits_BC in logits_MBC:
        kept_BC.scatter_(1, logits_BC.topk(min(TOP_K, num_classes), dim=1).indices, True)
    if batch.rated_offsets is not None and batch.rated_indices is not None:
        kept_BC &= cells_of(batch.rated_offsets, batch.rated_indices, num_classes)
    truth_BC = cells_of(batch.label_offsets, batch.label_indices, num_classes)
    rows, classes = kept_BC.nonzero(as_tuple=True)
    places = (kept_BC.cumsum(dim=1) - 1)[rows, classes]
    width = int(kept_BC.sum(dim=1).max())
    probabilities_MBU = torch.full((len(logits_MBC), num_videos, width), -1.0)
    for probabilities_BU, logits_BC in zip(probabilities_MBU, logits_MBC, strict=True):
        probabilities_BU[rows, places] = logits_BC[rows, classes].sigmoid()
    hits_BU = torch.zeros(num_videos, width, dtype=torch.bool)
    hits_BU[rows, places] = truth_BC[rows, classes]
    return Predictions(
        probabilities_MNU=probabilities_MBU.numpy(),
        hits_NU=hits_BU.numpy(),
        positives_N=batch.label_offsets.diff().numpy(),
    )


# ------------------------------------------------------------------------------------------------------------ in words


def describe(built: Built) -> list[str]:
    """Its table, and how the weights were found."""
    splits = list(built.scores)
    widths = [len(f"GAP on {split}") for split in splits]

    def line(first: str, weight: str, scores: dict[str, dict[str, float]]) -> str:
        gaps = (f"{scores[split]['gap']:>{width}.4f}" for split, width in zip(splits, widths, strict=True))
        return "  ".join([f"  {first:<12}{weight:>6}", *gaps])

    lines = ["  ".join([f"  {'':<12}weight", *(f"GAP on {split}" for split in splits)])]
    for member, weight, scores in zip(built.members, built.weights, built.member_scores, strict=True):
        lines.append(line(f"trial {member.trial.number:03d}", f"{weight:.3f}", scores))
    lines.append(line("ensemble", "", built.scores))
    for split in splits:
        best = max(scores[split]["gap"] for scores in built.member_scores)
        lines.append(f"  on all of {split}: {built.scores[split]['gap'] - best:+.4f} over its best member")
    if (found := built.weighting) is not None:
        lines += _describe(found)
    return lines


def _describe(found: Weighting) -> list[str]:
    """How the weights were found, and what they are worth on videos that had no part in it."""
    lines = [
        "  weights by greedy selection on the validation videos; where one half of them chooses for the other half: "
        f"GAP {found.gap_cross_fitted:.4f}, with equal weights {found.gap_equal:.4f}"
    ]
    if found.equal:
        lines.append("  so chosen weights do not carry over to other videos, and equal ones were taken")
    else:
        lines.append(
            "  (the table's GAP on validate is of the videos that chose the weights: the former is the fair one)"
        )
    return lines
