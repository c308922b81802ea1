"""A contrastive trial: one count of epochs over both phases, a resume anywhere, a shared encoder."""

import copy
import shutil
import subprocess
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import models
from data.errors import DataError
from models import FusedMLP, FusedMLPConfig
from models.contrastive.contrast import CrossModalConfig
from models.contrastive.views import ViewsConfig
from models.losses import LossConfig
from models.optim import OptimizerConfig, ScheduleConfig
from tests.support.small_data import small_data
from tuner.errors import TrialCollapsed, TrialDiverged, TunerError, disk_full_message
from tuner.training import checkpoint
from tuner.training.config import ContrastiveConfig, PhasesConfig, PretrainConfig, ProbeConfig
from tuner.training.contrastive import embeddings as embeddings_module
from tuner.training.contrastive import encoder_store as encoders
from tuner.training.contrastive import pretrain
from tuner.training.contrastive import probe as probe_module
from tuner.training.contrastive.embeddings import embed
from tuner.training.contrastive.encoder_store import EncoderStore
from tuner.training.contrastive.ridge import PENALTIES
from tuner.training.contrastive.trial import train
from tuner.training.data_config import DataConfig
from tuner.training.dataset import Dataset, open_dataset
from tuner.training.evaluation import evaluate
from tuner.training.state import Progress

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TIMES = ("seconds", "videos_per_second")
ADAMW = OptimizerConfig(kind="adamw", learning_rate=3e-3, schedule=ScheduleConfig(kind="cosine"))
METHODS: dict[str, dict[str, Any]] = {
    "moco_v1": {"kind": "moco_v1", "queue": 100, "dimension": 16, "momentum": 0.9},
    "moco_v2": {"kind": "moco_v2", "queue": 100, "dimension": 16, "momentum": 0.9, "temperature": 0.5},
    "moco_v3": {"kind": "moco_v3", "dimension": 16, "hidden": 32, "momentum": 0.9},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return small_data(tmp_path_factory.mktemp("contrastive"), train=320, label_fraction=0.25)


@pytest.fixture(scope="module")
def data(config: DataConfig) -> Dataset:
    return open_dataset(config)


def trial(*, method: str = "moco_v2", probe: dict[str, Any] | None = None, **pretrain: Any) -> ContrastiveConfig:
    """A contrastive trial of two epochs of each phase."""
    settings = {"optimizer": ADAMW, "batch_size": 64, "epochs": 2, "batch_norm_groups": 4, **METHODS[method]}
    of_probe = {"optimizer": OptimizerConfig(kind="adam", learning_rate=1e-2), "batch_size": 16, "epochs": 2}
    return ContrastiveConfig(
        model=FusedMLPConfig(towers={"rgb": 16, "audio": 8}, hidden=16, dropout=0.1),
        pretrain=PretrainConfig(**(settings | pretrain)),
        probe=ProbeConfig(**(of_probe | (probe or {}))),
        training=PhasesConfig(precision="fp32"),
    )


def numbers(progress: Progress) -> dict[str, float]:
    return {key: value for key, value in progress.metrics.items() if key not in TIMES}


def run(config: ContrastiveConfig, data: Dataset, **arguments: Any) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The numbers of every reported epoch, and the classifier after the last one."""
    told = []
    for progress in train(config, data, device=CPU, seed=1, **arguments):
        told.append(numbers(progress))
    return told, copy.deepcopy(progress.state.classifier.state_dict())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def classifier(config: ContrastiveConfig, data: Dataset, weights: dict[str, Tensor]) -> FusedMLP:
    model = models.build(config.model, data.sizes, data.statistics, torch.Generator())
    model.load_state_dict(weights)
    assert isinstance(model, FusedMLP)
    return model.eval()


def test_epochs_count_through_both_phases(data: Dataset) -> None:
    told, _ = run(trial(), data)
    assert [epoch["epoch"] for epoch in told] == [1, 2, 3, 4] and trial().epochs == 4
    for pretraining in told[:2]:
        assert {"loss_pretrain", "contrastive_accuracy", "embedding_std", "ridge_penalty"} <= pretraining.keys()
        assert pretraining["ridge_penalty"] in PENALTIES and "loss_train" not in pretraining
    for probing in told[2:]:
        assert "loss_train" in probing and "loss_pretrain" not in probing
    gaps = [epoch["gap"] for epoch in told]
    assert [epoch["gap_best"] for epoch in told] == list(np.maximum.accumulate(gaps))


def test_the_same_seed_gives_the_same_numbers(data: Dataset) -> None:
    assert run(trial(), data)[0] == run(trial(), data)[0]


def test_the_checkpoint_of_every_epoch_has_the_gap_that_the_epoch_reported(data: Dataset, tmp_path: Path) -> None:
    config = trial()
    validation = data.validate_batches(32, CPU)
    for progress in train(config, data, device=CPU, seed=1):
        progress.state.save(tmp_path / str(progress.epoch), config)
        weights = checkpoint.load_weights(tmp_path / str(progress.epoch), settings=config.settings)
        scores = evaluate(classifier(config, data, weights), validation, "fp32")
        assert scores["gap"] == pytest.approx(progress.metrics["gap"], abs=1e-9)


CASES: dict[str, ContrastiveConfig] = {
    "moco_v1": trial(method="moco_v1"),
    "moco_v2": trial(probe={"loss": LossConfig(bootstrap="per_batch", l2=1.0)}),
    "moco_v2 fine-tuned": trial(probe={"kind": "fine_tune", "start": "prior", "dropout": 0.5}),
    "moco_v3": trial(method="moco_v3", views=ViewsConfig(corruption=0.1, drop=0.1, noise=0.1)),
    "across features": trial(cross_modal=CrossModalConfig(weight=0.5, mix=1.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resume_after_any_epoch_equals_the_uninterrupted_trial(data: Dataset, tmp_path: Path, name: str) -> None:
    config = CASES[name]
    expected = []
    for progress in train(config, data, device=CPU, seed=1):
        progress.state.save(tmp_path / f"epoch-{progress.epoch}", config)
        expected.append(numbers(progress))
    final = copy.deepcopy(progress.state.classifier.state_dict())
    for epoch in range(1, config.epochs + 1):
        torch.manual_seed(99)  # what a new process draws from is another state
        told, weights = run(config, data, resume_from=tmp_path / f"epoch-{epoch}")
        assert told == expected[epoch - 1 :], f"resumed from epoch {epoch}"  # its own epoch is told once more
        assert_same(weights, final)


def test_the_encoder_does_not_depend_on_labels(data: Dataset) -> None:
    class WithoutLabels:
        """The training split, of which only features may be read."""

        def __init__(self, data: Dataset) -> None:
            self.sizes, self.statistics = data.sizes, replace(data.statistics, label_counts_C=None)
            self.train, self.residency = data.train, data.residency

        def pretrain_batches(self, batch_size: int, seed: int, device: torch.device) -> Any:
            batches = data.pretrain_batches(batch_size, seed, device)
            batches.epoch = lambda epoch, whole=batches.epoch: (  # type: ignore[method-assign]
                replace(batch, label_offsets=None, label_indices=None) for batch in whole(epoch)
            )
            return batches

    def encoder(source: Any) -> dict[str, Tensor]:
        state = pretrain.begin(trial(), source, device=CPU, seed=1)
        assert len(list(pretrain.epochs(trial(), source, state, device=CPU, seed=1))) == 2
        return state.encoder.state_dict()

    assert_same(encoder(WithoutLabels(data)), encoder(data))


def test_pretraining_uses_the_unlabelled_videos(config: DataConfig) -> None:
    data = open_dataset(replace(config, label_fraction=0.05))
    rows = torch.cat([batch.rows for batch in data.pretrain_batches(64, 1, CPU).epoch(0)])
    assert len(set(rows.tolist())) == 320 and data.statistics.num_videos == 16


def test_a_linear_probe_does_not_change_the_encoder(data: Dataset) -> None:
    encoders_seen = [
        copy.deepcopy(progress.state.classifier.encoder.state_dict())
        for progress in train(trial(), data, device=CPU, seed=1)
    ]
    for later in encoders_seen[2:]:
        assert_same(later, encoders_seen[1])


def test_an_encoder_that_its_probe_changed_fails_the_trial(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    original = probe_module.evaluate

    def meddling(model: FusedMLP, *arguments: Any) -> dict[str, float]:
        model.encoder.joint.linear.weight.data[0, 0] += 1e-3
        return original(model, *arguments)

    steps = train(trial(), data, device=CPU, seed=1)
    for _ in range(2):
        next(steps)
    monkeypatch.setattr(probe_module, "evaluate", meddling)
    next(steps)
    with pytest.raises(TunerError, match=r"the encoder changed .* \(joint\.linear\.weight\)"):
        next(steps)


@pytest.mark.parametrize("kind", ["linear", "fine_tune"])
def test_the_probe_starts_with_the_ridge_solution(data: Dataset, kind: str) -> None:
    still = {"kind": kind, "optimizer": OptimizerConfig(kind="sgd", learning_rate=1e-12)}
    (_, ridge, first, _), _ = run(trial(probe=still), data)
    assert first["gap"] == pytest.approx(ridge["gap"], abs=1e-3 if kind == "linear" else 0.1)
    (_, _, other, _), _ = run(trial(probe=still | {"start": "prior"}), data)
    assert other["gap"] < ridge["gap"] - 0.1


def test_fine_tuning_changes_the_encoder(data: Dataset) -> None:
    steps = list(train(trial(probe={"kind": "fine_tune"}), data, device=CPU, seed=1))
    first, second = run(trial(), data)[1], steps[-1].state.classifier.state_dict()
    assert not torch.equal(first["encoder.joint.linear.weight"], second["encoder.joint.linear.weight"])


def test_a_collapse_is_reported_and_fails_the_trial(data: Dataset) -> None:
    decayed = OptimizerConfig(kind="sgd", learning_rate=0.1, weight_decay=9.0)  # all weights to 0 within a few steps
    config = trial(optimizer=decayed, epochs=8)
    with pytest.raises(TrialCollapsed, match=r"pretraining collapsed in epoch \d: different videos have the same"):
        list(train(config, data, device=CPU, seed=1))


def test_a_contrastive_loss_that_is_not_finite_fails_the_trial(data: Dataset) -> None:
    steps = train(trial(), data, device=CPU, seed=1)
    state = next(steps).state
    with torch.no_grad():
        next(iter(state.phase.contrast.encoder.parameters()))[0, 0] = torch.nan
    with pytest.raises(TrialDiverged, match=r"the contrastive loss is not finite in epoch 2 by step 1 "):
        next(steps)


class TestEncoderStore:
    def test_trials_that_differ_in_their_probe_share_the_encoder(self, data: Dataset, tmp_path: Path) -> None:
        list(train(trial(), data, device=CPU, seed=1, encoder_store=EncoderStore(directory=tmp_path, trial_id="maker")))
        other = trial(probe={"loss": LossConfig(l2=5.0)})
        alone, _ = run(other, data)
        shared = list(
            train(other, data, device=CPU, seed=1, encoder_store=EncoderStore(directory=tmp_path, trial_id="taker"))
        )
        assert [progress.epoch for progress in shared] == [2, 3, 4]  # the last epoch of pretraining, and the probe's
        assert {progress.tags["encoder_made_by"] for progress in shared} == {"maker"}
        for progress, expected in zip(shared, alone[1:], strict=True):
            assert progress.metrics["gap"] == expected["gap"]

    def test_a_trial_with_a_cached_encoder_is_resumed_like_any_other(self, data: Dataset, tmp_path: Path) -> None:
        encoder_store = EncoderStore(directory=tmp_path / "encoder_store", trial_id="maker")
        list(train(trial(), data, device=CPU, seed=1, encoder_store=encoder_store))
        config, expected = trial(probe={"loss": LossConfig(l2=5.0)}), []
        for progress in train(config, data, device=CPU, seed=1, encoder_store=encoder_store):
            progress.state.save(tmp_path / str(progress.epoch), config)
            expected.append(numbers(progress))
        for index, epoch in enumerate((2, 3, 4)):
            assert (
                run(config, data, resume_from=tmp_path / str(epoch), encoder_store=encoder_store)[0] == expected[index:]
            )

    def test_the_trial_that_pretrained_a_cached_encoder_is_named(self, data: Dataset, tmp_path: Path) -> None:
        first = next(
            train(trial(), data, device=CPU, seed=1, encoder_store=EncoderStore(directory=tmp_path, trial_id="maker"))
        )
        key = encoders.key(encoders.shaped_by(trial(), data, 1))
        assert first.tags == {"encoder": key, "encoder_made_by": "maker"}

    def test_a_damaged_cached_encoder_is_pretrained_again(self, data: Dataset, tmp_path: Path) -> None:
        encoder_store = EncoderStore(directory=tmp_path, trial_id="maker")
        expected, _ = run(trial(), data, encoder_store=encoder_store)
        (weights,) = tmp_path.glob("*/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-4])
        assert run(trial(), data, encoder_store=encoder_store)[0] == expected  # all epochs again
        assert len(run(trial(), data, encoder_store=encoder_store)[0]) == 3  # and the new one is sound

    def test_a_trial_that_is_trained_again_pretrains_if_it_did_so(self, data: Dataset, tmp_path: Path) -> None:
        maker = EncoderStore(directory=tmp_path, trial_id="maker", takes_own=False)
        expected, _ = run(trial(), data, encoder_store=maker)
        assert run(trial(), data, encoder_store=maker)[0] == expected
        taker = EncoderStore(directory=tmp_path, trial_id="taker", takes_own=False)
        assert len(run(trial(), data, encoder_store=taker)[0]) < len(expected)

    def test_the_key_depends_only_on_what_determines_the_encoder(self, config: DataConfig, data: Dataset) -> None:
        def key(config: ContrastiveConfig = trial(), data: Dataset = data, seed: int = 1) -> str:  # noqa: B008
            return encoders.key(encoders.shaped_by(config, data, seed))

        same = [
            trial(probe={"loss": LossConfig(l2=5.0), "epochs": 9}),
            replace(trial(), model=replace(trial().model, prior_bias=False)),
        ]
        others = [
            trial(temperature=0.4),
            trial(views=ViewsConfig(corruption=0.3)),
            trial(epochs=3),
            replace(trial(), model=replace(trial().model, hidden=17)),
            replace(trial(), training=PhasesConfig(precision="bf16")),
        ]
        assert {key(config) for config in same} == {key()}
        assert key(data=open_dataset(replace(config, label_fraction=0.5))) == key()  # labels have no part in it
        swapped = open_dataset(replace(config, train=config.validate, label_fraction=1.0))
        assert len({key(), key(seed=2), key(data=swapped), *map(key, others)}) == 3 + len(others)

    def test_the_key_depends_on_the_source_of_the_modules(
        self, data: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """An edit of a module changes the key, and so does an edit of a file in a package."""
        before = encoders.key(encoders.shaped_by(trial(), data, 1))
        module = shutil.copy(models.video.fused_mlp.__file__, tmp_path)
        package = shutil.copytree(Path(models.contrastive.__file__).parent, tmp_path / "contrastive")
        for shaping, copied, edited in (
            (models.video.fused_mlp, module, Path(module)),
            (models.contrastive, package / "__init__.py", package / "queue.py"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(shaping, "__file__", str(copied))
                assert encoders.key(encoders.shaped_by(trial(), data, 1)) == before
                edited.write_text(edited.read_text() + "\n# edited\n")
                assert encoders.key(encoders.shaped_by(trial(), data, 1)) != before


def test_embeddings_in_a_file_equal_those_in_memory(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = classifier(trial(), data, run(trial(), data)[1]).encoder
    in_memory = embed(encoder, data, device=CPU, precision="fp32")
    monkeypatch.setattr(embeddings_module, "LARGEST_IN_MEMORY", 0)
    in_file = embed(encoder, data, device=CPU, precision="fp32")
    assert isinstance(in_file.features_ND, np.memmap) and not isinstance(in_memory.features_ND, np.memmap)
    np.testing.assert_array_equal(in_file.features_ND, in_memory.features_ND)


def test_a_disk_without_room_for_the_embeddings_is_an_error_before_any_is_computed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A page of a mapped file for which the disk has no room would kill the process with SIGBUS when it is written."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=False).returncode:
        pytest.skip("mounting needs root")
    monkeypatch.setattr(embeddings_module, "LARGEST_IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            embeddings_module._empty(1 << 20, 8)
        assert str(disk_full_message(caught.value)).startswith(f"{tmp_path}: embeddings: cannot be written, the disk")
        assert embeddings_module._empty(1 << 10, 8).shape == (1 << 10, 8)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_embeddings_of_the_labelled_videos_come_with_their_labels(data: Dataset) -> None:
    encoder = classifier(trial(), data, run(trial(), data)[1]).encoder
    found = embed(encoder, data, device=CPU, precision="fp32")
    assert data.labelled_rows is not None and len(found.features_ND) == len(data.labelled_rows) == 80
    for position, row in enumerate(data.labelled_rows):
        features_BD = torch.from_numpy(np.asarray(data.train.features_ND[row : row + 1]))
        expected = encoder(features_BD).half().detach().numpy()[0]
        np.testing.assert_allclose(found.features_ND[position], expected, atol=1e-3)
        begin, end = data.train.label_offsets[row : row + 2]
        own = found.label_indices[found.label_offsets[position] : found.label_offsets[position + 1]]
        assert own.tolist() == data.train.label_indices[begin:end].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "moco_v3", "queue": 64}, "queue has no effect on moco_v3, which has temperature, dimension, mom"),
        ({"hidden": 64}, "hidden has no effect on moco_v2"),
        ({"batch_size": 66}, "batch_size must be a multiple of batch_norm_groups.* but got 66 and 4"),
        ({"batch_norm_groups": 1}, r"pretrain\.batch_norm_groups must be at least 2 with model\.norm batch_norm"),
        ({"temperature": 0.0}, "temperature must be from 0.001 to 1,000"),
        ({"probe": {"dropout": 0.5}}, "dropout has no effect on a linear probe, only on fine_tune, but got 0.5"),
        ({"probe": {"kind": "fine_tune", "dropout": 1.0}}, r"dropout must be in \[0, 1\), but got 1.0"),
        ({"views": ViewsConfig(corruption={"rgb": 0.1})}, r"corruption must name every feature .*rgb, audio.* got rgb"),
        ({"epochs": 0}, "epochs must be from 1 to 16,777,216, but got 0"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trial(**settings)


@pytest.mark.parametrize(
    ("kind", "optimizer", "schedule"),
    [("moco_v1", "sgd", "step"), ("moco_v2", "sgd", "cosine"), ("moco_v3", "adamw", "cosine")],
)
def test_a_method_without_an_optimizer_uses_that_of_its_paper(kind: str, optimizer: str, schedule: str) -> None:
    chosen = PretrainConfig(kind=kind, batch_size=512).chosen_optimizer
    assert (chosen.kind, chosen.schedule.kind) == (optimizer, schedule)
    assert chosen.learning_rate == pytest.approx({"sgd": 0.06, "adamw": 3e-4}[optimizer])  # linear in the batch


@pytest.mark.parametrize(("batch_size", "rate"), [(256, 0.03), (128, 0.015)])
def test_the_learning_rate_of_moco_is_proportional_to_the_batch_size(batch_size: int, rate: float) -> None:
    """The learning rate is 0.03 for a batch of 256, as in the papers, and proportional to the batch size."""
    assert PretrainConfig(kind="moco_v2", batch_size=batch_size).chosen_optimizer.learning_rate == rate


def test_a_batch_size_above_the_number_of_videos_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"320 videos do not fill one batch of pretraining; set pretrain\.batch_size"):
        next(train(trial(batch_size=512), data, device=CPU, seed=1))


def test_a_checkpoint_stores_the_settings_of_both_phases(data: Dataset, tmp_path: Path) -> None:
    config = trial()
    next(train(config, data, device=CPU, seed=1)).state.save(tmp_path / "one", config)
    assert checkpoint.read_manifest(tmp_path / "one")["settings"]["pretrain"]["kind"] == "moco_v2"
    assert asdict(config)["probe"]["kind"] == "linear"
