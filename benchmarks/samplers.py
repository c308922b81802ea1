"""How well the samplers search: computed scores and a table of real trials, ours beside Optuna's own samplers.

    python benchmarks/samplers.py [--seeds 10] [--trials 100] [--only SPACE or SAMPLER ...]
    python benchmarks/samplers.py --table-from storage/yt8m_small/SEARCH

Ours is what a search does, without Ray and without training: the searcher of a search proposes, and every proposal and
result goes into a journal. Optuna's is `study.ask` and `study.tell` with its own sampler, where a failed trial is told
as failed; both begin with the defaults. Means over the seeds: the best score after 25, 50 and 100 trials, the failed
trials, in all and of the last 40, and the configurations that were tried before. The last line is one JSON object;
`ratio` is how many times as long Optuna's TPE takes for a suggestion as ours, after --history trials.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import torch
from card import show
from objectives import SPACES, TABLE, experiment, objective

from data.ranges import COUNT
from tuner.config.experiment import Experiment
from tuner.search.sampling.samplers import SAMPLERS
from tuner.search.sampling.suggestions import Suggestions
from tuner.search.searcher import JournaledSearch
from tuner.search.stopper import StopRule
from tuner.storage import journal
from tuner.storage.journal import Journal, SearchHistory, TrialHistory

AIM = 2.5  # times as long as ours: 10 ms in place of 27
AFTER = (25, 50, 100)
LAST = 40
Outcome = tuple[dict[str, Any], "float | None"]  # the values of a trial, and its score; None: it failed
# Its GridSampler ends a study from within `optimize`, and cannot be told of its last trial.
OPTUNA: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed, scramble=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=COUNT.whole, default=10, help="of the samplers (default: %(default)s)")
    parser.add_argument("--trials", type=COUNT.whole, default=100, help="of a search (default: %(default)s)")
    parser.add_argument("--slots", type=COUNT.whole, default=1, help="trials at a time (default: %(default)s)")
    parser.add_argument("--history", type=COUNT.whole, default=1000, help="for the time (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*SPACES, *SAMPLERS], default=[], help="spaces and samplers")
    parser.add_argument("--table-from", type=Path, metavar="SEARCH", help="write the table from this search, and end")
    options = parser.parse_args()
    if options.table_from:
        print(f"{TABLE.name}: {write_table(options.table_from)} trials")
        return
    if not TABLE.exists():
        parser.error(f"{TABLE}: there is no table; write one with --table-from")
    spaces = [space for space in SPACES if space in options.only] or SPACES
    samplers = [kind for kind in SAMPLERS if kind in options.only] or list(SAMPLERS)
    pairs = [(space, kind) for space in spaces for kind in samplers if kind != "grid" or space == "finite"]
    if not pairs:
        parser.error("--only: grid searches the space `finite` alone")
    figures = compare(pairs, options.seeds, options.trials, options.slots)
    ms = suggestion_ms(options.history)
    tell(figures, {"ms_a_suggestion": ms, "ratio": round(ms["optuna"] / ms["ours"], 2), "aim": AIM}, options)


def compare(pairs: Sequence[tuple[str, str]], seeds: int, trials: int, slots: int) -> dict[str, dict[str, Any]]:
    """The figures of each space, sampler and side, means over the seeds; says how far it is."""
    sides = [(space, kind, side) for space, kind in pairs for side in SIDES if side == "ours" or kind in OPTUNA]
    jobs = [(*each, seed) for each in sides for seed in range(1, seeds + 1)]
    found: dict[str, list[dict[str, float]]] = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(search, *job, trials, slots): job for job in jobs}
        for number, done in enumerate(as_completed(running), start=1):
            space, kind, side, seed = running[done]
            found.setdefault(f"{space} {kind} {side}", []).append(done.result())
            print(f"{number} of {len(jobs)} searches: {space}, {kind}, {side}, seed {seed}", flush=True)
    names = [" ".join(each) for each in sides]
    return {
        name: {key: round(statistics.mean(one[key] for one in found[name]), 4) for key in found[name][0]}
        for name in names
    }


def search(space: str, kind: str, side: str, seed: int, trials: int, slots: int) -> dict[str, float]:
    """The figures of one search."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings = [f"search.sampler={{kind: {kind}, seed: {seed}}}"]
    settings += [f"search.trials={trials}"] if kind != "grid" else []  # a grid has a trial for each combination
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = SIDES[side](experiment(space, *settings), space, seed, slots)
    scores = [score for _, score in outcomes]
    best = {f"best_{n}": max((s for s in scores[:n] if s is not None), default=0.0) for n in AFTER if n <= trials}
    different = {tuple(sorted(values.items())) for values, _ in outcomes}
    return best | {
        "trials": len(outcomes),
        "failed": scores.count(None),
        "failed_last": scores[-LAST:].count(None),
        "repeats": len(outcomes) - len(different),
    }


def ours(searched: Experiment, space: str, seed: int, slots: int) -> list[Outcome]:
    """The trials of a search of ours: a searcher and a journal; the trials are ended in their order."""
    score_of, running = objective(space), deque[dict[str, Any]]()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, closing(Journal(Path(folder))) as record:
        facts = {"version": journal.VERSION, "overrides": [], "fingerprint": "none", "tracking_uri": "-"}
        record.append("search", id="s", experiment=space, planned=searched.search.trials, baseline=0.0, **facts)
        assert record.search is not None
        searcher = JournaledSearch(searched, record, lambda: slots, StopRule(searched, record.search))
        while True:
            given = searcher.suggest(f"tune-{len(record.search.trials)}")
            if isinstance(given, dict) and "score" not in given:
                running.append({"tune": f"tune-{len(record.search.trials) - 1}", **given})
                continue
            if not running:
                return outcomes
            trial = running.popleft()
            score = score_of(trial["values"])
            searcher.on_trial_complete(trial["tune"])
            if score is None:
                record.append("failed", id=trial["trial_id"], error="it fails here", cause="settings")
            else:
                record.append("report", id=trial["trial_id"], epoch=1, metrics={"gap": score})
                record.append("finished", id=trial["trial_id"], stopped_by=None)
            outcomes.append((trial["values"], score))


def optunas(searched: Experiment, space: str, seed: int, slots: int) -> list[Outcome]:
    """The trials of Optuna's own sampler on the same space."""
    score_of = objective(space)
    outcomes: list[Outcome] = []
    running = deque[tuple[optuna.Trial, dict[str, Any]]]()
    study = optuna.create_study(direction="maximize", sampler=OPTUNA[searched.search.sampler.kind](seed))
    study.enqueue_trial(searched.space.defaults())
    for number in range(searched.search.trials + slots - 1):
        if number < searched.search.trials:
            asked = study.ask()
            running.append((asked, searched.space.optuna(asked)))
        if len(running) == slots or number >= searched.search.trials:
            trial, values = running.popleft()
            score = score_of(values)
            study.tell(trial, score, state=optuna.trial.TrialState.FAIL if score is None else None)
            outcomes.append((values, score))
    return outcomes


SIDES = {"ours": ours, "optuna": optunas}


def suggestion_ms(history: int, rounds: int = 20) -> dict[str, float]:
    """The median milliseconds of a suggestion of TPE in the table's space, beside 8 running trials, in turns."""
    searched = experiment("table")
    known = SearchHistory(id="s", experiment="table", fingerprint="", planned=0, tracking_uri="")
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for number in range(history + 8):
        asked = study.ask()
        trial = TrialHistory(number=number, id=str(number), values=searched.space.optuna(asked), sampler_state={})
        if number < history:
            score = objective("table")(trial.values)
            assert score is not None
            study.tell(asked, score)
            trial.status, trial.reports = "finished", {1: {"gap": score}}
        known.trials[trial.id] = trial
    study.sampler = optuna.samplers.TPESampler(seed=1)
    suggestions = Suggestions(searched, known, parallel=True)
    spent: dict[str, list[float]] = {"ours": [], "optuna": []}
    for number in range(history + 8, history + 8 + rounds):
        for side, suggest in (
            ("ours", lambda number=number: suggestions.next(str(number), number)),
            ("optuna", lambda: searched.space.optuna(study.ask())),
        ):
            started = time.thread_time()
            suggest()
            spent[side].append((time.thread_time() - started) * 1e3)
    return {side: round(statistics.median(each), 2) for side, each in spent.items()}


def write_table(folder: Path) -> int:
    """Keep the values and the GAP by epoch of a search's finished trials in TABLE; returns how many these are."""
    names, finished = experiment("table").space.names(), journal.read(folder).finished
    epochs = sorted({epoch for trial in finished for epoch in trial.reports})
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["number", *names, *(f"gap_{epoch}" for epoch in epochs)])
        for trial in sorted(finished, key=lambda trial: trial.number):
            gaps = [round(trial.reports[epoch]["gap"], 5) for epoch in epochs]
            rows.writerow([trial.number, *(trial.values.get(name, "") for name in names), *gaps])
    return len(finished)


def tell(figures: dict[str, dict[str, Any]], cost: dict[str, Any], options: argparse.Namespace) -> None:
    keys = list(next(iter(figures.values())))
    table = [["", *(key.replace("_", " ") for key in keys)]]
    table += [[name, *(f"{one[key]:.4g}" for key in keys)] for name, one in figures.items()]
    ms = cost["ms_a_suggestion"]
    notes = [
        f"TPE takes {ms['ours']} ms for a suggestion after {options.history} trials, Optuna's {ms['optuna']} ms: "
        f"ratio {cost['ratio']} (aim {AIM})"
    ]
    if any(name.startswith("table ") for name in figures):
        notes.append(f"table: R² {objective('table').explained:.2f} at trials that were left out")  # type: ignore[attr-defined]
    title = (
        f"{options.seeds} seeds, {options.slots} trial(s) at a time; the best score after so many trials, and counts"
    )
    show("samplers", title, table, notes, cost | {"seeds": options.seeds, "figures": figures})


if __name__ == "__main__":
    main()
