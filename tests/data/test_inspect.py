"""`python -m data.inspect` on any TFRecord file, without a schema."""

import gzip
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml
from tfrecord.writer import TFRecordWriter

from data.cache.recipe import find_shards
from data.sample import write_shards, write_splits
from data.tfrecord import read_examples
from tests.support.commands import exit_code_of
from tuner.training.data_config import DataConfig

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TUNER_CACHE", str(tmp_path_factory.mktemp("caches")))


@pytest.fixture
def example(tmp_path) -> Path:
    writer = TFRecordWriter(str(tmp_path / "example.tfrecord"))
    for number in range(5):
        datum = {"id": (b"ab%02d" % number, "byte"), "labels": ([3, 7], "int"), "mean_rgb": ([0.5] * 9, "float")}
        writer.write(datum)
    writer.close()
    return tmp_path / "example.tfrecord"


@pytest.fixture
def sequence(tmp_path) -> Path:
    writer = TFRecordWriter(str(tmp_path / "sequence.tfrecord"))
    steps = {"rgb": ([bytes(range(128, 192))] * 3, "byte"), "t": ([[1], [2]], "int")}
    writer.write({"video_id": (b"abcd", "byte")}, steps)
    writer.close()
    return tmp_path / "sequence.tfrecord"


def test_an_example_is_shown_by_key_type_count_and_first_values(example, capsys):
    assert exit_code_of("data.inspect", example, "--num", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "record at byte 0: Example, 3 keys",
        "  id        bytes    1  'ab00'",
        "  labels    int64    2  3 7",
        "  mean_rgb  float32  9  0.5 0.5 0.5 0.5 0.5 0.5 ...",
    ]
    assert lines[5] == "  id        bytes    1  'ab01'"
    assert lines[-1] == "... and more: --num 4 shows the first 4"


def test_a_sequence_example_shows_its_steps(sequence, capsys):
    assert exit_code_of("data.inspect", sequence) == 0
    assert capsys.readouterr().out.splitlines() == [
        "record at byte 0: SequenceExample, 3 keys",
        "  video_id  bytes      1  'abcd'",
        "  rgb[]     bytes  3 x 1  <80 81 82 83 84 85 86 87 88 89 8a 8b>... (64 bytes)",
        "  t[]       int64  2 x 1  1",
    ]


def test_gzip_is_shown_as_well(example, tmp_path, capsys):
    (tmp_path / "z").write_bytes(gzip.compress(example.read_bytes()))
    outputs = []
    for path in (example, tmp_path / "z"):
        assert exit_code_of("data.inspect", path) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_an_empty_file_is_reported(tmp_path, capsys):
    (tmp_path / "empty").touch()
    assert exit_code_of("data.inspect", tmp_path / "empty") == 0
    assert capsys.readouterr().out == "no records: the file is empty\n"


@pytest.mark.parametrize("content", [b"some text in a file that is no TFRecord", None], ids=["text", "missing"])
def test_a_bad_file_gives_one_sentence_and_code_2(tmp_path, capsys, content):
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content)
    assert exit_code_of("data.inspect", path) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{path}: ") and captured.err.count("\n") == 1 and not captured.out


def test_a_number_below_one_is_refused(example):
    assert exit_code_of("data.inspect", example, "--num", "0") == 2


def block_of(out):
    """The block of the yaml that the command printed."""
    return yaml.safe_load(out[out.index("data:\n") :])["data"]


def test_a_folder_is_summed_up_with_a_block_to_paste(tmp_path, capsys):
    folder = tmp_path / "my data [2018]"
    videos = {"train": 30, "validate": 10, "test": 5}
    write_splits(folder, num_videos=videos, num_shards=3, num_classes=9, features={"mean_rgb": 6, "other": 2})
    (folder / "notes.txt").write_text("no shard")
    assert exit_code_of("data.inspect", folder) == 0
    out = capsys.readouterr().out
    assert f"{folder}/train*.tfrecord: 3 shards, 30 videos, " in out
    assert "feature 'mean_rgb': 6 values, float32\n" in out and "id: 'id'\n" in out
    config = DataConfig(**block_of(out))
    labels = [example.labels for path in find_shards(str(folder / "*.tfrecord")) for example in read_examples(path)]
    assert config.num_classes == 1 + max(map(max, labels))
    assert f"labels: 'labels', {sum(map(len, labels)) / 45:.2f} a video, " in out
    for split, count in videos.items():
        assert config.open(getattr(config, split)).num_videos == count
    inspected = [("data.inspect", folder / "*.tfrecord"), ("data.inspect", *sorted(folder.glob("*.tfrecord")))]
    for command in inspected:
        assert exit_code_of(*command) == 0
        assert capsys.readouterr().out == out


def test_a_folder_of_a_bucket_is_summed_up(tmp_path, capsys):
    bucket = fsspec.filesystem("memory")
    for path in write_shards(tmp_path, num_videos=9, num_shards=2, num_classes=5, seed=1):
        bucket.pipe(f"/inspected/deep [1]/{path.name}", path.read_bytes())
    bucket.pipe("/inspected/notes.txt", b"no shard")
    assert exit_code_of("data.inspect", "memory://inspected") == 0
    out = capsys.readouterr().out
    assert "memory:///inspected/deep [1]/train*.tfrecord: 2 shards, 9 videos" in out
    assert find_shards(block_of(out)["train"]) == find_shards("memory://inspected/deep [1]/train*.tfrecord")


@pytest.mark.parametrize("level", ["frame", "segment"])
def test_the_block_of_other_keys_opens_the_shards(tmp_path, capsys, level):
    keys = {"id": "clip/data_id", "rgb": "RGB/feature/floats"}
    keys |= {"labels": "clip/label/index"} if level == "frame" else {}
    features = {"rgb": 6, "audio": 2}
    for split in ("train", "eval"):
        settings = {"num_videos": 20, "num_shards": 2, "num_classes": 9, "seed": 1, "features": features}
        write_shards(tmp_path / split, **settings, level=level, keys=keys, prefix="part-")
    assert exit_code_of("data.inspect", tmp_path) == 0
    config = DataConfig(**block_of(capsys.readouterr().out))
    assert (config.level, dict(config.features), dict(config.keys)) == (level, features, keys)
    assert config.open(config.train).num_videos and config.open(config.validate).num_videos


def test_features_of_youtube_8m_need_no_settings(tmp_path, capsys):
    write_shards(tmp_path, num_videos=3, num_shards=1, num_classes=5, seed=1)
    assert exit_code_of("data.inspect", tmp_path) == 0
    block = block_of(capsys.readouterr().out)
    assert block == {"train": f"{tmp_path}/train*.tfrecord", "num_classes": 3862}


def test_empty_and_damaged_shards_are_told(tmp_path, capsys):
    paths = write_shards(tmp_path, num_videos=9, num_shards=3, num_classes=5, seed=1)
    (tmp_path / "train0009.tfrecord").touch()
    paths[0].write_bytes(paths[0].read_bytes()[:-3])
    assert exit_code_of("data.inspect", tmp_path) == 2
    told = capsys.readouterr()
    assert f"{paths[0]}: record at byte " in told.err
    assert f"1 of 4 shards are empty: {tmp_path / 'train0009.tfrecord'}\n" in told.out
    assert "1 of 4 shards are damaged; only what comes before the damage is counted\n" in told.out
    assert "4 shards, 8 videos" in told.out


def test_a_folder_without_shards_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no shard")
    assert exit_code_of("data.inspect", tmp_path) == 2
    assert capsys.readouterr().err == f"{tmp_path}: no file in this folder is a TFRecord file\n"


def test_the_command_runs_without_torch(example):
    code = "import sys, runpy; sys.argv = ['inspect', sys.argv[1]]\n"
    code += "try: runpy.run_module('data.inspect', run_name='__main__')\nexcept SystemExit as e: assert not e.code\n"
    code += "assert not {'torch', 'tfrecord', 'ray'} & sys.modules.keys()"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code, example], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0 and "record at byte 0" in result.stdout, result.stderr
