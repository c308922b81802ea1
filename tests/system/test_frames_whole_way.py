"""Models of frames and of segments from the shards to the predictions: train, export, load, evaluate, predict."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.batches import Batches
from data.sample import write_shards
from data.schema import Schema
from models.losses import LossConfig
from models.metrics import Accumulator
from models.ragged import cells_of
from tests.support.commands import run_command
from tests.support.finished import FinishedSearch, make_finished_search
from tuner import train
from tuner.errors import ModelFolderError
from tuner.export import ensemble
from tuner.export.layout import PROGRAM
from tuner.export.loader import load_model
from tuner.export.writer import export_model
from tuner.inference import segments
from tuner.inference.embed import encoder_of
from tuner.training import evaluation
from tuner.training.checkpoint import WEIGHTS
from tuner.training.evaluation import BATCH_SIZE, batch_size_of
from tuner.training.objective import Objective
from tuner.training.ranks import ALONE

CPU = torch.device("cpu")
ODD = np.arange(1, 200, 2)
EXPERIMENTS = """\
default: tiny
experiments:
  tiny:
    data:
      level: {level}
      train: shards/train*.tfrecord
      validate: shards/validate*.tfrecord
      features: {{rgb: 24, audio: 8}}
      max_frames: 9
      num_classes: 12
      cache_folder: cache
    model: {{kind: average_logistic}}
    optimizer: {{kind: adam, learning_rate: {{loguniform: [1e-4, 1e-1]}}}}
    training: {{batch_size: 32, epochs: 2, precision: fp32, frames: {{sampling: random, count: 4}}}}
    search: {{trials: 4}}
"""


@pytest.fixture(scope="module", params=["frame", "segment"])
def search(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FinishedSearch:
    return make_finished_search(
        tmp_path_factory.mktemp("frames"),
        EXPERIMENTS.format(level=request.param),
        slow={"optimizer.learning_rate": 1e-4},
        fast={"optimizer.learning_rate": 3e-2},
    )


@pytest.fixture(scope="module")
def folder(search: FinishedSearch) -> Path:
    search.export(search.folder / "exported", class_names=None)
    return search.folder / "exported"


def test_an_export_has_the_score_of_its_trial(search: FinishedSearch, folder: Path) -> None:
    loaded = load_model(folder, CPU)
    assert loaded.schema == search.experiment.data.schema
    cache = loaded.open(search.validate)
    metrics = evaluation.evaluate(loaded.model, Batches(cache, batch_size=40, shuffle=False), loaded.precision)
    reported = search.best.reports[search.best.best_epoch]
    assert metrics["gap"] == pytest.approx(reported["gap"], abs=1e-6)
    assert metrics["num_videos"] == cache.num_videos == search.data.validate.num_videos


def test_the_exported_program_takes_any_number_of_videos_and_frames(search: FinishedSearch, folder: Path) -> None:
    model, program = load_model(folder, CPU).model, torch.export.load(folder / PROGRAM).module()
    for batch in (1, 3):
        for num_frames in (1, 9):
            frames_BTD = torch.randint(0, 256, (batch, num_frames, 32), dtype=torch.uint8)
            inputs = frames_BTD, torch.ones(batch, num_frames, dtype=torch.bool)
            torch.testing.assert_close(program(*inputs), model(*inputs))


def test_padding_does_not_change_the_scores(search: FinishedSearch) -> None:
    model, (batch, *_) = search.load_best(), Batches(search.data.validate, batch_size=8, shuffle=False).epoch(0)
    frames_BTD, mask_BT = batch.inputs
    noise = torch.randint(0, 256, frames_BTD.shape, dtype=torch.uint8)
    longer = torch.cat([torch.where(mask_BT[:, :, None], frames_BTD, noise), noise], dim=1)
    mask = torch.cat([mask_BT, torch.zeros_like(mask_BT)], dim=1)
    torch.testing.assert_close(model(longer, mask), model(frames_BTD, mask_BT))


def test_predictions_equal_those_of_the_model_for_every_example(search: FinishedSearch, folder: Path) -> None:
    output = search.folder / "predictions.csv"
    run_command("tuner.predict", folder, "--data", search.validate, "--output", output, "--batch-size", "7")
    with output.open() as file:
        rows = list(csv.DictReader(file))
    loaded = load_model(folder, CPU)
    cache = loaded.open(search.validate, require_labels=False)
    assert [row["VideoId"] for row in rows] == [id.decode() for id in cache.ids.tolist()]
    assert (":" in rows[0]["VideoId"]) == (loaded.schema.level == "segment")
    (batch,) = Batches(cache, batch_size=cache.num_videos, shuffle=False).epoch(0)
    best = loaded.model(*batch.inputs).sigmoid().max(dim=1)
    for row, label, share in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
        first = row["LabelConfidencePairs"].split()[:2]
        assert int(first[0]) == label and float(first[1]) == pytest.approx(share, abs=1e-5)


def test_segments_are_ranked_by_class_whatever_the_training_frames(search: FinishedSearch, folder: Path) -> None:
    """For two classes, the four best of all whole segments are listed, the best one first."""
    (search.folder / "ids.csv").write_text("Index\n7\n3\n")
    output, classes = search.folder / "segments.csv", str(search.folder / "ids.csv")
    command = [str(folder), "--data", search.validate, "--output", str(output), "--segments", "--batch-size", "7"]
    run_command("tuner.predict", *command, "--classes", classes, "--per-class", "4")
    loaded = load_model(folder, CPU)
    of_segments = replace(loaded, schema=replace(loaded.schema, level="segment"))
    cache = of_segments.open(search.validate, require_labels=False)
    (batch,) = Batches(cache, batch_size=cache.num_videos, shuffle=False).epoch(0)
    logits_NC = loaded.model(*batch.inputs)
    ranked = segments.read(output)
    assert list(ranked) == [7, 3]
    for label, listed in ranked.items():
        best = logits_NC[:, label].topk(4)
        numbers = [cache.ids.tolist().index(b"%s:%d" % segment) for segment in listed]
        torch.testing.assert_close(logits_NC[numbers, label], best.values)


def test_ranked_segments_are_scored_with_map(
    search: FinishedSearch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if search.experiment.data.level != "segment":
        pytest.skip("its shards have no ratings")
    output = search.folder / "all.csv.gz"
    run_command("tuner.predict", folder, "--data", search.validate, "--output", output, "--segments")
    capsys.readouterr()
    run_command("tuner.evaluate", "--data", search.validate, "--predictions", output)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.2 < found["map_at_k"] <= 1 and found["num_positives"] > 0


def test_an_ensemble_of_frame_level_models_is_used_as_a_model(search: FinishedSearch, tmp_path: Path) -> None:
    found = search.search
    wanted = ensemble.EnsembleOptions(count=2, weights="equal")
    built = ensemble.assemble(search.directory, search.experiment, found, wanted, print)
    exported = built.to_export(search.experiment)
    whole = {"search_directory": search.directory, "experiment": search.experiment, "search": found}
    export_model(tmp_path / "both", exported, class_names=None, **whole)
    loaded = load_model(tmp_path / "both", CPU)
    batches = Batches(loaded.open(search.validate), batch_size=40, shuffle=False)
    gap = evaluation.evaluate(loaded.model, batches, loaded.precision)["gap"]
    assert gap == pytest.approx(built.scores["validate"]["gap"], abs=1e-6)


def test_a_class_that_is_not_rated_changes_neither_training_nor_scores(search: FinishedSearch) -> None:
    if search.experiment.data.level != "segment":
        pytest.skip("every class of a video is rated")
    data, model = search.data, search.load_best()
    (batch, *_) = data.train_batches(32, 1, CPU).epoch(0)
    rated_BC = cells_of(batch.rated_offsets, batch.rated_indices, 12)
    truth_BC = cells_of(batch.label_offsets, batch.label_indices, 12)
    assert not rated_BC.all() and (truth_BC <= rated_BC).all()
    generator, sizes = torch.Generator().manual_seed(1), {"batch_size": 32, "part_size": 32}
    loss_of = Objective(LossConfig(), data, **sizes, bootstrap=generator, device=CPU, seed=1, ranks=ALONE)
    logits_BC = model(*batch.inputs).detach()
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits_BC, truth_BC.float(), reduction="none")
    assert loss_of(logits_BC, batch).item() == pytest.approx((cells * rated_BC).sum(1).mean().item(), rel=1e-5)
    scores = [Accumulator(12), Accumulator(12)]
    for kept, shift in zip(scores, (0.0, 9.0), strict=True):
        rated = {"rated_offsets": batch.rated_offsets, "rated_indices": batch.rated_indices}
        kept.update(logits_BC + shift * ~rated_BC, batch.label_offsets, batch.label_indices, **rated)
    assert scores[0].compute() == scores[1].compute()


def test_the_frequency_of_a_class_is_that_among_its_rated_segments(search: FinishedSearch, tmp_path: Path) -> None:
    if search.experiment.data.level != "segment":
        pytest.skip("every class of a video is rated")
    settings = ["loss.pos_weight_power=0.5", "optimizer.learning_rate=1e-12", "training.epochs=1"]
    file, kept = str(search.folder / "experiments.yaml"), tmp_path / "kept"
    train.run(["--file", file, *(f"--set={setting}" for setting in settings), "--device=cpu", f"--save={kept}"])
    for data, rows in ((search.data, range(search.data.train.num_videos)), (search.data.with_labels_of(ODD), ODD)):
        labels_C, rated_C = np.zeros(12), np.zeros(12)
        for row in rows:
            labels_C[data.train.label_indices[slice(*data.train.label_offsets[row : row + 2])]] += 1
            rated_C[data.train.rated_indices[slice(*data.train.rated_offsets[row : row + 2])]] += 1
        assert (labels_C <= rated_C).all() and (rated_C > 0).all() and (rated_C < len(rows)).all()
        loss, sizes = LossConfig(pos_weight_power=0.5), {"batch_size": 32, "part_size": 32}
        objective = Objective(loss, data, **sizes, bootstrap=torch.Generator(), device=CPU, seed=1, ranks=ALONE)
        ratio_C = rated_C / labels_C.clip(1, rated_C - 1) - 1
        assert objective.pos_weights_C.tolist() == pytest.approx((ratio_C**0.5).tolist(), rel=1e-6)
        if data is search.data:  # with this learning rate the trial learns nothing: its biases are the priors
            odds_C = np.log((labels_C + 0.5) / (rated_C - labels_C + 0.5))
            assert load_file(kept / WEIGHTS)["head.bias"].tolist() == pytest.approx(odds_C.tolist(), abs=1e-6)


def test_embedding_with_a_frame_level_model_is_refused(search: FinishedSearch, folder: Path) -> None:
    with pytest.raises(ModelFolderError, match="has no encoder"):
        encoder_of(load_model(folder, CPU))


def test_long_videos_are_scored_in_smaller_batches() -> None:
    assert batch_size_of(Schema()) == BATCH_SIZE
    assert batch_size_of(Schema(features={"a": 128}, level="frame", max_frames=10)) == BATCH_SIZE
    assert batch_size_of(Schema(features={"rgb": 1024, "audio": 128}, level="frame")) == (1 << 26) // (1152 * 300)
    assert batch_size_of(Schema(features={"rgb": 1 << 20}, level="frame")) == 1


def test_the_frames_of_a_sample_video_differ_more_than_the_means_of_its_videos(tmp_path: Path) -> None:
    """Each class shows in some of the frames only: otherwise attention and VLAD would have nothing to find."""
    from data.frames import decode

    schema = Schema(features={"rgb": 64}, num_classes=8, level="frame")
    given = {"num_shards": 1, "num_classes": 8, "seed": 1, "features": schema.features, "level": "frame"}
    (path,) = write_shards(tmp_path, num_videos=300, **given)
    shard = decode(path, schema)
    video_F = np.repeat(np.arange(300), np.diff(shard.frame_offsets))
    spread = [shard.features_ND[video_F == n].astype(float).var(axis=0).mean() for n in range(300)]
    mean_ND = np.stack([shard.features_ND[video_F == n].mean(axis=0) for n in range(300)])
    assert np.mean(spread) > 3 * mean_ND.var(axis=0).mean()
