"""What README and docs show works: every command is run here, or by the test that the table ELSEWHERE names."""

import gc
import io
import re
import runpy
import shlex
import shutil
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.support.finished import FinishedSearch
from tests.support.workplace import PROJECT

README = PROJECT / "README.md"
GUIDE = [README, PROJECT / "CONTRIBUTING.md", PROJECT / "clusters" / "README.md", *sorted(PROJECT.glob("docs/*.md"))]
PAGES = [page.relative_to(PROJECT).as_posix() for page in [*GUIDE, PROJECT / "CHANGELOG.md"]]
# One page for each subject of the issue that asked for them, and each says first what it is for.
SUBJECTS = (
    *("experiments", "samplers-and-schedulers", "resuming", "steering", "clusters", "storage", "contrastive"),
    *("frames-and-segments", "ensembles", "mlflow", "export", "reliability", "benchmarks", "scaling", "python"),
)
PURPOSE = re.compile(r"# [^\n]+\n\nThis page ")
MOST_WORDS = 1000  # of the README
LANGUAGES = {"sh", "text", "yaml", "python"}

# Commands that take minutes, several machines or a network: who runs them. Each is also checked to exist, see below.
# A pattern matches the whole command.
MINE = r"python tune\.py mine"
SEARCH = "tests/system/test_search.py::test_a_search_ends_with_a_model_that_has_the_reported_score"
TINY = "tests/system/test_benchmarks.py::test_a_benchmark_ends_with_one_json_line_that_has_its_ratio"
CLUSTER = "tests/cluster/test_cluster.py"
BUCKET = "tests/storage/test_s3.py::test_a_killed_search_in_a_bucket_is_resumed_and_its_model_is_used_from_there"
FRAMES = "tests/system/test_frames_whole_way.py"
PARSED = "parsed alone: it takes an hour or more, or needs the real shards"
ELSEWHERE = {
    r"python3 -m venv \.venv && .*": ".ci/run",
    MINE: SEARCH,
    rf"{MINE} --set \S+ --trials \d+": SEARCH,
    rf"{MINE} --extend \d+": SEARCH,
    r"python tune\.py --(resume|extend \d+ --search) \d+-\d+-\d+": "tests/search/test_begin.py::"
    "test_a_search_that_is_named_is_continued_whatever_its_experiment",
    r"python tune\.py (mine )?--retry-failed( --search \d+-\d+-\d+)?": "tests/search/test_retry_failed.py",
    rf"{MINE} --warm-start \S+": "tests/system/test_search.py::"
    "test_a_search_begins_with_what_the_one_before_knows_and_an_unchanged_one_trains_nothing",
    rf"{MINE} --resume": "tests/faults/test_process.py::test_a_killed_driver",
    r"python -m tuner\.steer mine (try|drop|pause|resume|trials|stop).*": "tests/system/test_steering.py::"
    "test_a_search_is_steered_while_it_runs",
    rf"{MINE} --fresh": "tests/search/test_begin.py::test_a_new_search_mentions_all_that_have_not_ended",
    r"python tune\.py contrastive": "tests/system/test_search.py::"
    "test_both_phases_of_a_contrastive_trial_resume_and_share_their_encoder",
    r"python -m tuner\.best contrastive --export": "tests/training/test_contrastive.py",
    r"python -m tuner\.best mine --ensemble 5 --bagging --export bagged": "tests/export/test_ensemble.py",
    r"python -m tuner\.predict frames_model .* --segments": FRAMES,
    r"python -m tuner\.evaluate --data 'segments/.*": "tests/inference/test_segments.py::"
    "test_a_file_is_scored_with_the_ratings_of_the_shards",
    r"pip install \"video-tuner\[s3\]\"": ".ci/run",
    rf"{MINE} --storage s3://\S+": BUCKET,
    r"python -m tuner\.best mine --storage s3://\S+ --export s3://\S+": BUCKET,
    r"python -m tuner\.evaluate s3://.*": BUCKET,
    r"ray (up|submit|exec|rsync-down|attach|dashboard) cluster\.yaml.*": CLUSTER,
    r"ray down clusters/aws\.yaml --yes": "tests/cluster/test_cluster_files.py",
    r"kubectl delete -f clusters/kuberay\.yaml": "tests/cluster/test_cluster_files.py",
    r"RAY_AUTH_MODE=token .* ray job submit .*": f"{CLUSTER}::test_ray_job_submit_works_too",
    r"mlflow ui --backend-store-uri sqlite:///mlflow\.db": "tests/tracking/test_mlflow_server.py",
    r"python benchmarks/(decode|feed|step|pretrain|gap|samplers|search)\.py.*": TINY,
    r"python benchmarks/compare\.py .*": "tests/system/test_benchmarks.py::"
    "test_models_are_tuned_alike_and_no_finished_run_is_repeated",
    r"python benchmarks/(few_labels|ensemble|driver|driver_calibration|faults|fuzz)\.py.*": PARSED,
    r"python -m benchmarks\.storm.*": PARSED,
    r"pytest( -m .*)?": ".ci/run",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str) -> Iterator[Block]:
    text = (PROJECT / page).read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands_of(page: str) -> list[str]:
    """Every line of the page's shell blocks, without its comment."""
    lines = [line for block in blocks_of(page) if block.language == "sh" for line in block.text.splitlines()]
    return [command for line in lines if (command := re.sub(r"(^|\s+)# .*", "", line).strip())]


def elsewhere(command: str) -> str | None:
    """The test or script that runs a command which is not run here; None for any other command."""
    return next((where for pattern, where in ELSEWHERE.items() if re.fullmatch(pattern, command)), None)


def spans_of(page: str) -> list[str]:
    """The texts in single backticks in the prose of a page."""
    prose = re.sub(r"^```.*?^```", "", (PROJECT / page).read_text(), flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


# `python tune.py ...`, `python -m tuner.best ...`: the program, and the rest of the command.
PROGRAM = re.compile(r"python3? (tune\.py|-m (?:tuner|data|benchmarks)\.\w+(?![\w.])|benchmarks/\w+\.py)([^&|]*)")
PROGRAMS = sorted(
    {
        (found[1], found[2].strip())
        for page in PAGES
        if page != "CHANGELOG.md"  # it names what is gone as well
        for text in [*commands_of(page), *spans_of(page)]
        for found in PROGRAM.finditer(text)
    }
)


@cache
def help_of(program: str) -> str:
    """The output of `python PROGRAM --help`."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        assert run(f"python {program} --help", patch) == 0, printed.getvalue()
    return printed.getvalue()


def run(command: str, patch: pytest.MonkeyPatch) -> int:
    """Run `python ...` in this process, where torch is imported already; returns its exit code."""
    _, *words = shlex.split(command)
    program, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    file = PROJECT / (program if program.endswith(".py") else program.replace(".", "/"))
    file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
    patch.setattr(sys, "argv", [str(file), *arguments])
    if words[0] != "-m":
        patch.syspath_prepend(str(file.parent))  # as Python does it for a program
    code: object = None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # a command leaves closing its output to the end of its process
        try:
            runpy.run_path(str(file), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
        gc.collect()
    return code if isinstance(code, int) else int(code is not None)


# --- the form of the pages


def test_the_readme_has_at_most_a_thousand_words() -> None:
    assert len(README.read_text().split()) <= MOST_WORDS


def test_the_first_two_blocks_are_single_lines_that_install_and_run_everything() -> None:
    first, second = [block.text for block in blocks_of("README.md") if block.language == "sh"][:2]
    for line in (first, second):
        assert line.count("\n") == 1 and not line.rstrip().endswith("\\")  # one physical line
        create, install, run = line.strip().split(" && ")
        assert "-m venv .venv" in create and ".venv/bin/pip install" in install and run.startswith(".venv/bin/")
    assert first.strip().endswith(".venv/bin/python tune.py")
    assert '-e ".[test]"' in second and second.strip().endswith(".venv/bin/pytest")


def test_the_leader_table_of_the_readme_is_what_a_search_prints() -> None:
    from rich.console import Console

    from tuner.console.tables import leader_table
    from tuner.console.text import STOPPED_BY
    from tuner.storage.journal import TrialHistory

    output = next(block.text for block in blocks_of("README.md") if block.language == "text")
    (shown,) = re.findall(r"^ {10,}model\..*?(?=\n\n)", output, re.M | re.S)
    trials = []
    for row in shown.splitlines()[2:]:
        number, gap, epoch, ended, dropout, rate, l2 = re.split(r"  +", row.strip())
        stopped_by = {f"stopped by {word}": name for name, word in STOPPED_BY.items()} | {"completed": None}
        settings = {"model.dropout": float(dropout), "optimizer.learning_rate": float(rate), "loss.l2": float(l2)}
        trial = TrialHistory(number=int(number), id=number, values={}, sampler_state={}, settings=settings)
        trial.status, trial.reports, trial.stopped_by = "finished", {int(epoch): {"gap": float(gap)}}, stopped_by[ended]
        trials.append(trial)
    printed = io.StringIO()
    Console(file=printed, width=120).print(leader_table(trials, list(trials[0].settings)))
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == shown.splitlines()


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_page_begins_with_its_purpose(subject: str) -> None:
    assert PURPOSE.match((PROJECT / "docs" / f"{subject}.md").read_text())


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README.read_text()))
    assert {f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md")} <= linked


def test_the_map_of_the_readme_shows_every_package() -> None:
    (shown,) = [block.text for block in blocks_of("README.md") if "tuner/  " in block.text]
    packages = [init.parent for root in ("data", "models", "tuner") for init in PROJECT.glob(f"{root}/__init__.py")]
    packages += [init.parent for init in PROJECT.glob("tuner/*/__init__.py")]
    assert {package.name for package in packages} <= set(re.findall(r"^ *(\w+)/  ", shown, re.M))


def test_every_block_names_its_language() -> None:
    unlabelled = [f"{block.page}:{block.line}" for block in BLOCKS if block.language not in LANGUAGES]
    assert not unlabelled


def anchors_of(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_has_a_target(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", (PROJECT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)]+)\)", prose):
        name, _, anchor = target.partition("#")
        linked = (PROJECT / page).parent / name if name else PROJECT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    folders = ("data", "models", "tuner", "tests", "benchmarks", "clusters", "docs", ".ci")
    known = {path.name for folder in folders for path in (PROJECT / folder).rglob("*.*")}
    known |= {path.name for path in PROJECT.iterdir()}
    known |= {"experiment.yaml", "trial.yaml"}  # what searches and exports write
    shell = [block.text for block in blocks_of(page) if block.language in ("sh", "text")]
    for text in [*shell, *spans_of(page)]:
        for name in re.findall(r"(?<![\w/.*<{-])[\w./-]*\w\.(?:py|ya?ml|md|toml|sh)\b", text):
            assert (PROJECT / name).exists() or name in known, f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_name_is_in_the_file_that_a_page_gives_for_it(page: str) -> None:
    prose = " ".join((PROJECT / page).read_text().split())
    for name, file in re.findall(r"`([\w.]+)` (?:of|in) `([\w/]+\.py)`", prose):
        text = (PROJECT / file).read_text()
        assert all(re.search(rf"\b{part}\b", text) for part in name.split(".")), f"{page}: {name} in {file}"


# --- what cannot be run here


@pytest.mark.parametrize("pattern, where", ELSEWHERE.items())
def test_a_command_that_is_run_elsewhere_exists_and_so_does_its_test(pattern: str, where: str) -> None:
    assert any(re.fullmatch(pattern, command) for page in PAGES for command in commands_of(page)), "no such command"
    if where != PARSED:
        file, _, test = where.partition("::")
        assert f"def {test}" in (PROJECT / file).read_text() if test else (PROJECT / file).exists()


@pytest.mark.parametrize("program", sorted({program for program, _ in PROGRAMS}))
def test_every_program_shows_its_help(program: str) -> None:
    assert "usage:" in help_of(program)


@pytest.mark.parametrize("program, rest", PROGRAMS)
def test_every_option_and_experiment_exists(program: str, rest: str) -> None:
    closing = rest.count("'") % 2  # the command itself stands in quotes: ray exec cluster.yaml 'python ...'
    words = shlex.split(rest.rstrip("'") if closing else rest)
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}\b", help_of(program))
    if program in ("tune.py", "-m tuner.train", "-m tuner.best") and words and re.match(r"[a-z]", words[0]):
        assert words[0] in {"mine", *yaml.safe_load((PROJECT / "experiments.yaml").read_text())["experiments"]}


def test_every_extra_and_every_marker_exists() -> None:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    texts = [(PROJECT / page).read_text() for page in PAGES]
    extras = {extra for text in texts for extra in re.findall(r"video-tuner\[([\w-]+)\]", text)}
    assert extras and extras <= pyproject["project"]["optional-dependencies"].keys()
    markers = {marker.split(":")[0] for marker in pyproject["tool"]["pytest"]["ini_options"]["markers"]}
    shown = " ".join(found for text in texts for found in re.findall(r"pytest -m (\w+|\"[^\"]+\")", text))
    assert shown and set(re.findall(r"\w+", shown)) - {"or", "and", "not"} <= markers


def test_the_documented_command_for_results_is_the_one_that_a_search_prints() -> None:
    from tuner.tracking.uri import ui_command

    (shown,) = [command for page in PAGES for command in commands_of(page) if command.startswith("mlflow")]
    assert ui_command("mlflow", "sqlite:///mlflow.db") == shown


# --- what is run here


@pytest.fixture
def folder(
    finished_search: FinishedSearch, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a reader: `experiments.yaml` with `mine`, shards, a finished search of it, and its model."""
    place = tmp_path / "reader"
    for name in ("shards", "cache"):
        shutil.copytree(finished_search.folder / name, place / name)
    shutil.copy(finished_search.folder / "vocabulary.csv", place)
    shutil.copytree(exported, place / "model")
    (place / "experiments.yaml").write_text(
        (finished_search.folder / "experiments.yaml").read_text().replace("tiny", "mine")
    )
    search = shutil.copytree(finished_search.directory, place / "storage" / "mine" / finished_search.directory.name)
    for name in ("journal.jsonl", "experiment.yaml"):
        stored = re.sub(r', "crc32c": \d+}$', "}", (search / name).read_text(), flags=re.M)  # which would not match
        (search / name).write_text(re.sub(r"\btiny\b", "mine", stored))
    monkeypatch.chdir(place)
    yield place


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_here_or_elsewhere(
    page: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    earlier = {command for before in PAGES[: PAGES.index(page)] for command in commands_of(before)}
    here = [command for command in commands_of(page) if elsewhere(command) is None and command not in earlier]
    unknown = [command for command in here if not PROGRAM.match(command)]
    assert not unknown, "neither run here nor in the table ELSEWHERE"
    if not here:
        return
    request.getfixturevalue("folder")
    for command in here:
        code = run(command, monkeypatch)
        assert code == 0, f"{page}: {command}\n{capfd.readouterr().err}"


def test_the_yaml_of_the_readme_works_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (pasted,) = [block.text for block in blocks_of("README.md") if block.language == "yaml"]
    assert pasted.count("\n") == 12
    (tmp_path / "experiments.yaml").write_text(pasted)
    monkeypatch.chdir(tmp_path)
    assert run("python -m data.sample shards --train 60 --validate 30 --test 0 --shards 2", monkeypatch) == 0
    assert run("python tune.py mine --dry-run", monkeypatch) == 0
    assert re.search(r"\bmine\b.*\n.*data\.train: 2 shards", capfd.readouterr().out)


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml"], ids=lambda block: f"{block.page}:{block.line}"
)
def test_every_yaml_block_is_an_experiment_or_a_part_of_one(block: Block, folder: Path) -> None:
    from tuner.config.experiment import load

    content = yaml.safe_load(block.text)
    if "experiments" in content:
        (folder / "pasted.yaml").write_text(block.text)
        for name in content["experiments"]:
            load(folder / "pasted.yaml", name)
    else:
        load(folder / "experiments.yaml", "mine", [f"{key}={value}" for key, value in content.items()])


def test_the_python_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a search, which needs Ray, it gets the finished one; tests/system/test_search.py runs one."""
    from tuner.search import driver

    (directory,) = (folder / "storage" / "mine").glob("2*")
    monkeypatch.setattr(driver, "run", lambda *arguments: driver.Outcome(0, directory))
    monkeypatch.setattr("tuner.console.Console", SimpleNamespace)
    namespace: dict[str, object] = {}
    for block in blocks_of("docs/python.md"):
        exec(compile(block.text, f"docs/python.md:{block.line}", "exec"), namespace)


def test_only_the_python_page_shows_python() -> None:
    others = [f"{block.page}:{block.line}" for block in BLOCKS if block.language == "python"]
    assert all(place.startswith("docs/python.md:") for place in others), "no test runs it there"
