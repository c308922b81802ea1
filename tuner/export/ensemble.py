"""Assemble one model from several trials of a search: it gives the weighted mean of their probabilities.

    python -m tuner.best --ensemble K [--bagging] [--weights equal] [--size-limit MIB] [--half] [--export]

The members are the K best trials; with `--bagging`, the K best trials that were trained on different bootstrap samples.
Their weights come from the validation videos (tuner/export/member_weights.py). The model is exported like any other
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from data.batches import Batches
from data.cache.store import Cache
from models.ensemble import Ensemble
from tuner.config.experiment import Experiment
from tuner.errors import NothingToExport, TunerError
from tuner.export.checkpoints import best_checkpoint, load_checkpoint
from tuner.export.member_predictions import predict_members
from tuner.export.member_weights import Weighting, choose_weights
from tuner.export.weights import round_to_float16, stored_bytes
from tuner.export.writer import ModelToExport
from tuner.storage.journal import SearchHistory, TrialHistory
from tuner.storage.place import Place
from tuner.training.checkpoint import epoch_of
from tuner.training.config import ContrastiveConfig
from tuner.training.evaluation import batch_size_of, evaluate
from tuner.training.precision import Precision

MIB = 2**20
CPU = torch.device("cpu")

PrintLine = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleOptions:
    """Which ensemble to assemble; the fields are the options of the command line."""

    count: int  # number of members
    bagging: bool = False  # use only trials that were trained on different bootstrap samples
    weights: Literal["validation", "equal"] = "validation"
    size_limit: float | None = None  # largest size of model.safetensors in MiB
    float16: bool = False  # store weight matrices as float16


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One trial's model in an ensemble."""

    trial: TrialHistory
    epoch: int  # the weights are those after this epoch
    model: nn.Module

    @property
    def gap(self) -> float:
        """The GAP that the trial reported in this epoch."""
        return float(self.trial.reports[self.epoch]["gap"])


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledEnsemble:
    """An ensemble, its members and its scores."""

    members: list[Member]  # best first
    weights: list[float]
    model: Ensemble
    precision: Precision
    float16: bool
    weighting: Weighting | None  # None: equal weights were requested, or there is one member
    member_scores: list[dict[str, dict[str, float]]]  # the metrics of each member, by split
    scores: dict[str, dict[str, float]]  # the metrics of the ensemble, by split

    def to_export(self, experiment: Experiment) -> ModelToExport:
        """What `tuner.export.writer.export_model` writes."""
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
        return ModelToExport(
            model=self.model,
            trials=[member.trial for member in self.members],
            config={"model": {"kind": "ensemble", "members": members}, "precision": self.precision},
            scores=self.scores,
            float16=self.float16,
        )

    @property
    def name(self) -> str:
        """What it is, as the end of a folder's name: ensemble-3, or trial-007 where one member is left."""
        one = len(self.members) == 1
        return f"trial-{self.members[0].trial.number:03d}" if one else f"ensemble-{len(self.members)}"

    def describe(self) -> list[str]:
        """The lines of its report: a table of the members, the gain over the best member, and the choice of weights."""
        splits = list(self.scores)
        widths = [len(f"GAP on {split}") for split in splits]

        def line(first: str, weight: str, scores: dict[str, dict[str, float]]) -> str:
            gaps = (f"{scores[split]['gap']:>{width}.4f}" for split, width in zip(splits, widths, strict=True))
            return "  ".join([f"  {first:<12}{weight:>6}", *gaps])

        lines = ["  ".join([f"  {'':<12}weight", *(f"GAP on {split}" for split in splits)])]
        for member, weight, scores in zip(self.members, self.weights, self.member_scores, strict=True):
            lines.append(line(f"trial {member.trial.number:03d}", f"{weight:.3f}", scores))
        if len(self.members) == 1:
            lines.append(f"  one member is left: the model is trial {self.members[0].trial.number:03d} alone")
        else:
            lines.append(line("ensemble", "", self.scores))
            for split in splits:
                best = max(scores[split]["gap"] for scores in self.member_scores)
                lines.append(f"  on all of {split}: {self.scores[split]['gap'] - best:+.4f} over the best member")
        if self.weighting is not None:
            lines += _describe_weighting(self.weighting)
        return lines


def _describe_weighting(weighting: Weighting) -> list[str]:
    lines = [
        "  weights by greedy selection on the validation videos; on videos that did not choose them (each half of the "
        f"videos chooses for the other half): GAP {weighting.gap_cross_fitted:.4f}, "
        f"with equal weights {weighting.gap_equal:.4f}"
    ]
    if weighting.equal:
        lines.append("  chosen weights are no better than equal weights on other videos, so the weights are equal")
    else:
        lines.append(
            "  (the GAP on validate in the table is measured on the videos that chose the weights; "
            "the GAP on videos that did not choose them is the fair one)"
        )
    return lines


def assemble(
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    options: EnsembleOptions,
    print_line: PrintLine,
) -> AssembledEnsemble:
    """Choose the members and their weights, and score all of them on the whole of `validate` (and `test`).

    Args:
        search_directory: the folder of the search.
        experiment: the experiment, as the search ran it.
        search: the search.
        options: which ensemble to assemble.
        print_line: prints a sentence about each trial that is left out.

    Raises:
        NothingToExport: no trial can be a member.
        TunerError: a single member is already larger than the size limit.
        DataError: the validation shards cannot be read.
    """
    members = _within_limit(_members(search_directory, experiment, search, options, print_line), options, print_line)
    precision = _precision(experiment, members)
    splits = _splits(experiment, search)
    weighting = None
    weights = np.full(len(members), 1 / len(members))
    if options.weights == "validation" and len(members) > 1:
        weighting = choose_weights(predict_members([member.model for member in members], splits["validate"], precision))
        weights = weighting.weights_M
    if not weights.all():
        left_out = ", ".join(_name(member) for member, weight in zip(members, weights, strict=True) if not weight)
        print_line(f"left out, because they do not improve the ensemble: {left_out}")
    members = [member for member, weight in zip(members, weights, strict=True) if weight]
    model = Ensemble([member.model for member in members], weights[weights > 0].tolist()).eval().requires_grad_(False)
    return AssembledEnsemble(
        members=members,
        weights=weights[weights > 0].tolist(),
        model=model,
        precision=precision,
        float16=options.float16,
        weighting=weighting,
        member_scores=[_scores(member.model, splits, precision) for member in members],
        scores=_scores(model, splits, precision),
    )


def _members(
    search_directory: Place,
    experiment: Experiment,
    search: SearchHistory,
    options: EnsembleOptions,
    print_line: PrintLine,
) -> list[Member]:
    """The best trials that can be loaded, at most `options.count`."""
    members: list[Member] = []
    candidates = _bootstrapped(experiment, search, print_line) if options.bagging else search.finished
    for trial in candidates:
        if len(members) == options.count:
            break
        try:
            checkpoint = best_checkpoint(search_directory, trial, print_line)
        except NothingToExport as error:
            print_line(f"{error}; it is left out")
            continue
        model = load_checkpoint(checkpoint, experiment, trial, CPU)
        members.append(Member(trial=trial, epoch=epoch_of(checkpoint), model=model))
    name = f"search {search.id} of {search.experiment}"
    if not members:
        kind = "finished trial on a bootstrap sample (loss.bootstrap: fixed)" if options.bagging else "finished trial"
        raise NothingToExport(f"{name}: no {kind} has an undamaged checkpoint, so there is no ensemble")
    if len(members) < options.count:
        print_line(f"{name} has {len(members)} such trials, not {options.count}: the ensemble consists of these")
    if options.float16:
        for member in members:
            round_to_float16(member.model)
    return members


def _bootstrapped(experiment: Experiment, search: SearchHistory, print_line: PrintLine) -> list[TrialHistory]:
    """The finished trials with a fixed bootstrap sample, best first; of trials with the same sample, the best one."""
    by_sample: dict[int, TrialHistory] = {}
    found = 0
    for trial in search.finished:
        settings = experiment.trial_config(trial.values)
        loss = settings.probe.loss if isinstance(settings, ContrastiveConfig) else settings.loss
        if loss.bootstrap == "fixed":
            found += 1
            by_sample.setdefault(settings.seed(trial.number), trial)
    if found > len(by_sample):
        print_line(
            f"{found} trials have loss.bootstrap: fixed, but together only {len(by_sample)} bootstrap samples: the "
            "seed draws the sample, and training.seed: per_trial gives each trial a different one"
        )
    return list(by_sample.values())


def _within_limit(members: list[Member], options: EnsembleOptions, print_line: PrintLine) -> list[Member]:
    """The best members that together do not exceed the size limit."""
    if options.size_limit is None:
        return members
    kept = members
    while (size := _mib(kept, options.float16)) > options.size_limit:
        if len(kept) == 1:
            hint = "" if options.float16 else f"; --half stores it in {_mib(kept, float16=True):.1f} MiB"
            raise TunerError(
                f"--size-limit {options.size_limit:g}: {_name(kept[0])} alone takes {size:.1f} MiB{hint}: "
                "give a larger limit"
            )
        print_line(
            f"{len(kept)} members take {size:.1f} MiB, more than {options.size_limit:g}: {_name(kept[-1])} is dropped"
        )
        kept = kept[:-1]
    return kept


def _mib(members: Sequence[Member], float16: bool) -> float:
    """An upper estimate of the size of model.safetensors in MiB."""
    model = Ensemble([member.model for member in members], [1 / len(members)] * len(members))
    return stored_bytes(model, float16=float16) / MIB


def _name(member: Member) -> str:
    return f"trial {member.trial.number:03d} (GAP {member.gap:.4f})"


def _precision(experiment: Experiment, members: Iterable[Member]) -> Precision:
    """The precision of all members; fp32, which is correct for each of them, if they differ."""
    precisions = {experiment.trial_config(member.trial.values).training.precision for member in members}
    return precisions.pop() if len(precisions) == 1 else "fp32"


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
