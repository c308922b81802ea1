"""`python -m data.inspect` on any TFRecord file, without a schema."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from tfrecord.writer import TFRecordWriter

from tests.support.commands import exit_code_of


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
    assert captured.err.startswith(f"error: {path}: ") and captured.err.count("\n") == 1 and not captured.out


def test_a_number_below_one_is_refused(example):
    assert exit_code_of("data.inspect", example, "--num", "0") == 2


def test_the_command_runs_without_torch(example):
    code = "import sys, runpy; sys.argv = ['inspect', sys.argv[1]]\n"
    code += "try: runpy.run_module('data.inspect', run_name='__main__')\nexcept SystemExit as e: assert not e.code\n"
    code += "assert not {'torch', 'tfrecord', 'ray'} & sys.modules.keys()"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code, example], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0 and "record at byte 0" in result.stdout, result.stderr
