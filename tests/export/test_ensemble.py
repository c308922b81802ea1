"""Ensembles: the mean of probabilities as one model, its members, their weights, its size and its folder."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.batches import Batches
from models.ensemble import Ensemble, mean_log_odds
from tests.support.commands import exit_code_of, refusal_of, run_command
from tests.support.finished import FAST, FinishedSearch
from tuner.errors import ModelFolderError
from tuner.export import ensemble, member_weights
from tuner.export.checkpoints import load_trial
from tuner.export.ensemble import AssembledEnsemble, EnsembleOptions
from tuner.export.loader import load_model
from tuner.export.member_predictions import predict_members
from tuner.export.member_weights import MemberPredictions
from tuner.inference.embed import encoder_of
from tuner.storage.journal import Journal
from tuner.training import evaluation
from tuner.training.pipelines import train

CPU = torch.device("cpu")
Printed = pytest.CaptureFixture[str]


class Shift(nn.Module):
    """A member with known logits: it adds a constant to its input."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


# ----------------------------------------------------------------------------------------------------------- the model


def test_the_logits_are_the_log_odds_of_the_weighted_mean_probability() -> None:
    logits_BC = torch.tensor([[-3.0, 0.0, 0.7], [5.0, -0.2, 1.0]])
    found = Ensemble([Shift(0.0), Shift(1.0)], [0.25, 0.75])(logits_BC)
    mean = 0.25 * logits_BC.double().sigmoid() + 0.75 * (logits_BC.double() + 1).sigmoid()
    torch.testing.assert_close(found, (mean / (1 - mean)).log().float())


def test_probabilities_are_averaged_and_not_logits() -> None:
    """One member gives 0.5 and the other 1, so the mean is 0.75."""
    found = Ensemble([Shift(0.0), Shift(40.0)], [0.5, 0.5])(torch.zeros(1, 1))
    assert found.sigmoid().item() == pytest.approx(0.75)


@pytest.mark.parametrize("sign", [1, -1])
def test_near_certain_members_give_finite_distinct_log_odds(sign: int) -> None:
    """In float32 sigmoid(20) is 1 and sigmoid(-110) is 0; the log-odds of the mean are still finite."""
    logits = sign * torch.tensor([[20.0, 30.0, 90.0, 110.0]])
    found = mean_log_odds([logits, logits + 1], torch.tensor([0.5, 0.5]).log())
    z = logits.double()
    # p = w s(z) + w s(z + 1): where s is e^z, or 1 - e^-z, the mean is z plus a constant.
    offset = np.log((1 + np.e) / 2) if sign < 0 else -np.log((1 + np.exp(-1)) / 2)
    torch.testing.assert_close(found, (z + offset).float(), rtol=1e-6, atol=1e-5)
    assert torch.isfinite(found).all() and (found.diff() != 0).all()


def test_an_ensemble_of_one_member_gives_the_logits_of_the_member() -> None:
    logits = torch.linspace(-80, 80, 33)[None]
    torch.testing.assert_close(Ensemble([Shift(0.0)], [1.0])(logits), logits)


def test_half_precision_members_are_averaged_in_float32() -> None:
    logits = torch.linspace(-9, 9, 5).bfloat16()[None]
    found = Ensemble([Shift(0.0), Shift(0.5)], [0.5, 0.5])(logits)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, mean_log_odds([logits.float(), (logits + 0.5).float()], torch.tensor(0.5).log().expand(2))
    )


@pytest.mark.parametrize("weights", [[], [1.0], [0.5, 0.6], [1.5, -0.5], [1.0, 0.0]])
def test_invalid_weights_are_refused(weights: Sequence[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        Ensemble([Shift(0.0), Shift(1.0)], weights)


# --------------------------------------------------------------------------------------------------------- the weights


def predictions(probabilities_MNC: np.ndarray, labels_NC: np.ndarray) -> MemberPredictions:
    return MemberPredictions(
        probabilities_MNU=probabilities_MNC.astype(np.float32),
        hits_NU=labels_NC.astype(bool),
        positives_N=labels_NC.sum(axis=1).astype(np.int64),
    )


def noisy_members(deviations: Sequence[float], num_videos: int = 300) -> MemberPredictions:
    """Members whose predictions are the labels with independent noise."""
    random = np.random.default_rng(0)
    labels_NC = random.random((num_videos, 30)) < 0.1
    noise = np.array(deviations)[:, None, None] * random.normal(size=(len(deviations), num_videos, 30))
    return predictions(1 / (1 + np.exp(2 - 4 * labels_NC - noise)), labels_NC)


def test_the_gap_equals_that_of_the_metric() -> None:
    from models import metrics

    random = np.random.default_rng(1)
    scores, labels = random.random((2, 50, 40)), random.random((50, 40)) < 0.1
    found = predictions(scores, labels).gap(np.tile([0.3, 0.7], (50, 1)))
    assert found == pytest.approx(metrics.gap(0.3 * scores[0] + 0.7 * scores[1], labels), rel=1e-6)


def test_padding_after_the_classes_of_a_video_does_not_count_as_a_prediction() -> None:
    given = predictions(np.array([[[0.5, 0.4, 0.3]]]), np.array([[0, 1, 0]]))
    padded = replace(
        given,
        probabilities_MNU=np.pad(given.probabilities_MNU, ((0, 0), (0, 0), (2, 40)), constant_values=-1),
        hits_NU=np.pad(given.hits_NU, ((0, 0), (2, 40))),
    )
    assert padded.gap(np.ones((1, 1))) == given.gap(np.ones((1, 1))) == 0.5


def test_labels_outside_the_kept_classes_count_as_positives() -> None:
    """The denominator of GAP counts all positives, including those that no member predicted."""
    given = predictions(np.array([[[0.5, 0.4]]]), np.array([[1, 0]]))
    assert replace(given, positives_N=np.array([4])).gap(np.ones((1, 1))) == 0.25


def test_a_useless_member_gets_no_weight_and_the_good_ones_share_it() -> None:
    weights = member_weights.greedy_weights(noisy_members([1.0, 1.0, 30.0]))
    assert weights.sum() == pytest.approx(1) and weights[2] == 0 and min(weights[:2]) > 0.25


def test_weights_that_are_better_on_other_videos_are_kept() -> None:
    chosen = member_weights.choose_weights(noisy_members([1.0, 6.0, 6.0, 6.0]))
    assert not chosen.equal and chosen.weights_M[0] > 0.5
    assert chosen.gap_cross_fitted > chosen.gap_equal


def test_weights_that_are_better_only_on_the_videos_they_were_chosen_on_are_replaced_by_equal_ones() -> None:
    """Of eight equal members, the selection prefers some by chance on 40 videos; other videos do not confirm it."""
    given = noisy_members([2.0] * 8, num_videos=40)
    chosen = member_weights.choose_weights(given)
    selected = member_weights.greedy_weights(given)
    assert given.gap(np.tile(selected, (40, 1))) > chosen.gap_equal  # on the videos that chose the weights
    assert chosen.equal and chosen.gap_cross_fitted <= chosen.gap_equal
    assert chosen.weights_M.tolist() == [1 / 8] * 8


def test_the_choice_of_weights_is_deterministic() -> None:
    given = noisy_members([1.0, 2.0, 3.0])
    first, second = (member_weights.choose_weights(given).weights_M.tolist() for _ in range(2))
    assert first == second


# ----------------------------------------------------------------------------------------------------------- the search


def build(given: FinishedSearch, **options: Any) -> tuple[AssembledEnsemble, list[str]]:
    """The ensemble, and the sentences that were passed to `print_line`."""
    said: list[str] = []
    wanted = EnsembleOptions(**{"count": 2} | options)
    return ensemble.assemble(given.directory, given.experiment, given.search, wanted, said.append), said


def test_members_are_the_best_trials_and_are_scored_on_the_whole_split(finished_search: FinishedSearch) -> None:
    built, said = build(finished_search, weights="equal")
    assert [member.trial.number for member in built.members] == [1, 0] and built.weights == [0.5, 0.5]
    assert said == [] and built.weighting is None
    for member, scores in zip(built.members, built.member_scores, strict=True):
        assert scores["validate"]["gap"] == pytest.approx(member.trial.score, abs=1e-6)
    batches = Batches(finished_search.data.validate, batch_size=1024, shuffle=False)
    assert built.scores["validate"] == evaluation.evaluate(built.model, batches, "fp32")


def test_the_predictions_that_weights_are_chosen_on_give_the_gap_of_the_model(finished_search: FinishedSearch) -> None:
    """The 20 best predictions of a video include all 12 classes, so they give exactly the GAP of the model."""
    built, _ = build(finished_search)
    kept = predict_members([member.model for member in built.members], finished_search.data.validate, "fp32")
    for member, scores in enumerate(built.member_scores):
        one = np.eye(len(built.members))[np.full(150, member)]
        assert kept.gap(one) == pytest.approx(scores["validate"]["gap"], rel=1e-6)


def test_a_member_of_weight_0_is_left_out_and_named(finished_search: FinishedSearch) -> None:
    """Trial 0 has hardly learned anything."""
    built, said = build(finished_search)
    assert built.weighting is not None and not built.weighting.equal
    assert [member.trial.number for member in built.members] == [1] and built.weights == [1.0]
    assert re.fullmatch(r"left out, because they do not improve the ensemble: trial 000 \(GAP 0\.\d{4}\)", said[0])


def test_an_ensemble_of_fewer_trials_than_requested_is_reported(finished_search: FinishedSearch) -> None:
    built, said = build(finished_search, count=5, weights="equal")
    assert len(built.members) == 2
    assert said == ["search 20260102-030405-0001 of tiny has 2 such trials, not 5: the ensemble consists of these"]


def test_a_trial_without_a_complete_checkpoint_is_left_out_and_named(own: FinishedSearch) -> None:
    shutil.rmtree(own.directory / "trials" / "trial-1")
    built, said = build(own, count=1)
    assert [member.trial.number for member in built.members] == [0]
    assert said[0].startswith("trial 001 of search") and said[0].endswith("it is left out")


# ----------------------------------------------------------------------------------------------------------- bagging


def add_trial(given: FinishedSearch, number: int, *, bootstrap: str) -> None:
    """Add a finished trial to the search."""
    id = f"trial-{number}"
    values = {**FAST, "loss.bootstrap": bootstrap}
    settings = given.experiment.trial_config(values)
    opened = Journal(given.directory)
    states: dict[str, Any] = {"sampler_state": {}, "study_state": {}}
    opened.append("suggested", number=number, id=id, values=values, settings={}, **states)
    *_, last = train(settings, given.data, device=CPU, seed=settings.seed(number))
    last.state.save(given.directory / "trials" / id / "epoch-0002", settings)
    opened.append("report", id=id, epoch=2, metrics=last.metrics)
    opened.append("finished", id=id, stopped_by=None)
    opened.close()


def bagged(own: FinishedSearch, seed: str) -> FinishedSearch:
    """A search over loss.bootstrap with the shards of `own`, of which only trials 0 and 1 have bootstrap samples."""
    from tuner.config.experiment import load

    overrides = [
        "loss.bootstrap={choice: [none, fixed, per_batch]}",
        f"training.seed={seed}",
        f"data.train={own.experiment.data.train}",
        f"data.validate={own.experiment.data.validate}",
    ]
    given = replace(own, experiment=load(own.folder / "experiments.yaml", None, overrides))
    shutil.rmtree(given.directory / "trials")
    journal = given.directory / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    for number, bootstrap in enumerate(("fixed", "fixed", "per_batch", "none")):
        add_trial(given, number, bootstrap=bootstrap)
    return given


def test_bagging_takes_only_trials_with_different_bootstrap_samples(own: FinishedSearch) -> None:
    built, said = build(bagged(own, "per_trial"), count=3, bagging=True, weights="equal")
    assert {member.trial.number for member in built.members} == {0, 1}
    assert said == ["search 20260102-030405-0001 of tiny has 2 such trials, not 3: the ensemble consists of these"]


def test_bagging_reports_that_trials_with_one_seed_share_one_bootstrap_sample(own: FinishedSearch) -> None:
    built, said = build(bagged(own, "1"), count=2, bagging=True)
    assert len(built.members) == 1
    assert "2 trials have loss.bootstrap: fixed, but together only 1 bootstrap samples" in said[0]
    assert "training.seed: per_trial gives each trial a different one" in said[0]


# ----------------------------------------------------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def folder(finished_search: FinishedSearch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of both trials. Tests must not change it."""
    target = tmp_path_factory.mktemp("ensembles") / "two"
    run_command("tuner.best", *of(finished_search), "--ensemble", "2", "--weights", "equal", "--export", target)
    return target


def of(given: FinishedSearch) -> list[str]:
    """The options that name the search. The stored yaml names its shards."""
    return ["--storage", str(given.storage)]


def refused(capsys: Printed, *arguments: str) -> str:
    return refusal_of(capsys, "tuner.best", *arguments, prints_before=True)


def test_the_exported_ensemble_loads_as_a_model(
    finished_search: FinishedSearch, exported: Path, folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}
    run_command("tuner.evaluate", folder, "--data", finished_search.validate, "--device", "cpu")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["gap"] == json.loads((folder / "metrics.json").read_text())["validate"]["gap"]
    output = tmp_path / "out.csv"
    run_command(
        "tuner.predict", str(folder), "--data", finished_search.validate, "--output", str(output), "--device", "cpu"
    )
    assert len(output.read_text().splitlines()) == 151


def test_its_probabilities_are_the_mean_of_its_members(finished_search: FinishedSearch, folder: Path) -> None:
    model = load_model(folder, CPU).model
    features = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    members = [
        load_trial(finished_search.directory, finished_search.experiment, trial, CPU)
        for trial in finished_search.search.finished
    ]
    with torch.inference_mode():
        expected = torch.stack([member(features).sigmoid() for member in members]).mean(dim=0)
        torch.testing.assert_close(model(features).sigmoid(), expected)
        program = torch.export.load(folder / "model.pt2").module()
        torch.testing.assert_close(program(features).sigmoid(), expected)


def test_its_card_and_its_settings_name_the_members(finished_search: FinishedSearch, folder: Path) -> None:
    from tuner.config.experiment import load

    card = (folder / "README.md").read_text()
    assert "the weighted mean of the probabilities of 2 trials of search 20260102" in card
    scores = [trial.score for trial in finished_search.search.finished]
    assert re.search(rf"\| 001 \| 2 \| fused_mlp \| 0\.500 \| {scores[0]:.4f} \|", card)
    assert f"| all of validate | {json.loads((folder / 'metrics.json').read_text())['validate']['gap']:.4f} |" in card
    again = load(folder / "trial.yaml", "tiny_000").trial_config({})
    trial = finished_search.search.trials["trial-0"]
    assert again.model == finished_search.experiment.trial_config(trial.values).model
    assert load(folder / "trial.yaml", None).name == "tiny_001"


def test_an_export_of_the_format_before_ensembles_still_loads(exported: Path, tmp_path: Path) -> None:
    import hashlib

    shutil.copytree(exported, tmp_path / "old")
    told = json.loads((tmp_path / "old" / "config.json").read_text())
    assert told.pop("weights") == "float32"
    (tmp_path / "old" / "config.json").write_text(json.dumps(told | {"format": 2}))
    digest = hashlib.sha256((tmp_path / "old" / "config.json").read_bytes()).hexdigest()
    sums = (tmp_path / "old" / "SHA256SUMS").read_text()
    (tmp_path / "old" / "SHA256SUMS").write_text(re.sub(r"\w+(?=  config.json)", digest, sums))
    features = torch.ones(2, 32)
    assert torch.equal(load_model(tmp_path / "old", CPU).model(features), load_model(exported, CPU).model(features))


def test_an_ensemble_replaces_only_an_ensemble_of_the_same_search(
    finished_search: FinishedSearch, exported: Path, folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    copies = tmp_path / "ensemble", tmp_path / "trial"
    shutil.copytree(folder, copies[0])
    shutil.copytree(exported, copies[1])
    command = [*of(finished_search), "--ensemble", "1", "--export"]
    run_command("tuner.best", *command, str(copies[0]))
    assert "replaced an earlier export of an ensemble of the same search" in capsys.readouterr().out
    assert len(load_model(copies[0], CPU).config["model"]["members"]) == 1
    said = refused(capsys, *command, str(copies[1]))
    assert "exists and holds trial 001 of search 20260102-030405-0001" in said and "for an ensemble of search" in said
    said = refused(capsys, *of(finished_search), "--export", str(copies[0]))
    assert "exists and holds an ensemble of search" in said and "for trial 001" in said


def test_without_export_only_a_table_is_printed(
    finished_search: FinishedSearch, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_command("tuner.best", *of(finished_search), "--ensemble", "2", "--weights", "equal")
    printed = capsys.readouterr().out
    assert "trial 001    0.500" in printed and "over the best member" in printed and "next:" not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("limited", "name"), [(False, "ensemble-2"), (True, "trial-001")])
def test_an_ensemble_is_named_after_the_members_that_it_keeps(
    finished_search: FinishedSearch,
    tmp_path: Path,
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
    limited: bool,
    name: str,
) -> None:
    """Three are asked for; two trials have finished, and one of them fits into the limit."""
    monkeypatch.chdir(tmp_path)
    limit = ["--size-limit", f"{sizes(finished_search)[1] - 0.001:.6f}"] if limited else []
    command = [*of(finished_search), "--ensemble", "3", "--weights", "equal"]
    run_command("tuner.best", *command, *limit, "--export")
    (target,) = (tmp_path / "exports").iterdir()
    assert target.name == f"tiny-20260102-030405-0001-{name}"
    printed = capsys.readouterr().out
    assert f"tuner.evaluate exports/{target.name} " in printed
    assert ("the model is trial 001 alone" in printed) is limited
    assert ("over the best member" in printed) is not limited
    card = (target / "README.md").read_text()
    assert ("It is trial 001 (epoch 2) alone, stored as an ensemble of one member, of search" in card) is limited
    assert "of 1 trials" not in card


def test_the_method_that_chose_the_weights_is_printed(finished_search: FinishedSearch, capsys: Printed) -> None:
    run_command("tuner.best", *of(finished_search), "--ensemble", "2")
    printed = capsys.readouterr().out
    assert "weights by greedy selection on the validation videos" in printed and "with equal weights 0." in printed


# --------------------------------------------------------------------------------------------------------------- size


def sizes(given: FinishedSearch) -> list[float]:
    """Sizes in MiB of an ensemble of the best trial, and of one of both trials."""
    members = [ensemble.Member(trial=t, epoch=2, model=given.load_best()) for t in given.search.finished]
    return [ensemble._mib(members[:count], float16=False) for count in (1, 2)]


def test_the_weakest_members_are_dropped_until_the_ensemble_fits_and_are_reported(
    finished_search: FinishedSearch, tmp_path: Path, capsys: Printed
) -> None:
    limit = sizes(finished_search)[1] - 0.001
    target = tmp_path / "small"
    command = [*of(finished_search), "--ensemble", "2", "--weights", "equal", "--export", str(target)]
    run_command("tuner.best", *command, "--size-limit", f"{limit:.6f}")
    assert re.search(r"2 members take .* MiB, more than .*: trial 000 \(GAP .*\) is dropped", capsys.readouterr().out)
    assert (target / "model.safetensors").stat().st_size <= limit * 2**20
    assert [one["number"] for one in load_model(target, CPU).config["model"]["members"]] == [1]


def test_the_predicted_size_is_that_of_the_written_file(finished_search: FinishedSearch, folder: Path) -> None:
    written = (folder / "model.safetensors").stat().st_size / 2**20
    assert written <= sizes(finished_search)[1] <= written + 0.01


def test_with_half_the_scores_are_those_of_the_rounded_weights(
    finished_search: FinishedSearch, folder: Path, tmp_path: Path, capsys: Printed
) -> None:
    target = tmp_path / "half"
    command = [*of(finished_search), "--ensemble", "2", "--weights", "equal", "--half", "--export", str(target)]
    run_command("tuner.best", *command)
    stored = load_file(target / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim == 2} == {torch.float16}
    assert {tensor.dtype for name, tensor in stored.items() if "variance" in name or "running_var" in name} == {
        torch.float32
    }
    capsys.readouterr()
    run_command("tuner.evaluate", target, "--data", finished_search.validate, "--device", "cpu")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["gap"] == json.loads((target / "metrics.json").read_text())["validate"]["gap"]
    assert "weight matrices are rounded to float16" in (target / "README.md").read_text()


def test_a_size_limit_below_the_size_of_one_member_is_refused(finished_search: FinishedSearch, capsys: Printed) -> None:
    said = refused(capsys, *of(finished_search), "--ensemble", "2", "--size-limit", "0.001")
    assert "--size-limit 0.001: trial 001" in said and "alone takes" in said and "--half stores it in" in said


# --------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ensemble", "0"], "argument --ensemble: must be a whole number from 1 to"),
        (["--ensemble", "2", "--size-limit", "-3"], "argument --size-limit: must be a number in (0, "),
        (["--ensemble", "2", "--weights", "best"], "invalid choice: 'best'"),
        (["--half"], "--half needs --ensemble K"),
        (["--bagging"], "--bagging needs --ensemble K"),
        (["--size-limit", "5"], "--size-limit needs --ensemble K"),
    ],
)
def test_options_that_are_invalid_or_do_not_fit_together_are_refused(
    finished_search: FinishedSearch, capsys: Printed, arguments: list[str], told: str
) -> None:
    assert exit_code_of("tuner.best", *of(finished_search), *arguments) == 2
    assert told in capsys.readouterr().err


def test_bagging_without_bootstrap_samples_is_refused(finished_search: FinishedSearch, capsys: Printed) -> None:
    said = refused(capsys, *of(finished_search), "--ensemble", "2", "--bagging")
    assert "no finished trial on a bootstrap sample (loss.bootstrap: fixed)" in said


def test_an_ensemble_has_no_embeddings(folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="kind ensemble has no encoder"):
        encoder_of(load_model(folder, CPU))
