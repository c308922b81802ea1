"""The driver of a search: samplers, schedulers, the recorder; and `run`, which is `tune.py` for Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the stages of `tune.py` begin before anything large is imported
    from tuner.storage.journal import SearchHistory
    from tuner.storage.place import Place


def run(
    file: Path | str,
    experiment: str | None = None,
    *,
    overrides: Sequence[str] = (),
    storage: "Place | str | None" = None,
    tracking_uri: str | None = None,
    address: str | None = None,
    resume: bool = False,
    extend: int = 0,
    retry_failed: bool = False,
    search: str | None = None,
) -> "SearchHistory":
    """Run a search as `tune.py` does, print what it prints, and return its results.

    Args:
        file: experiments.yaml.
        experiment: its name in the file; None: the file's default.
        overrides: settings as `--set` takes them, such as `search.trials=4`.
        storage: folder or URL where searches are kept; None: $TUNER_STORAGE, else the folder storage beside the yaml.
        tracking_uri: of MLflow; None: $MLFLOW_TRACKING_URI, else mlflow.db beside the yaml.
        address: of a running Ray; None: as `tune.py` chooses it.
        resume: continue a search; by default the newest one that has not ended.
        extend: number of trials to add to a search; by default to the newest one.
        retry_failed: try the failed trials of a search again; by default of the newest one.
        search: the id of the search to continue.

    Returns:
        The results: `.finished` are the trials with a score, best first, and `.table()` has a row for each trial. Where
        a signal has ended the search, `.ended` is None, and `resume=True` continues it.

    Raises:
        ConfigError: the file is wrong.
        SearchError: there is no search to resume, another driver runs, or Ray or MLflow cannot be reached.
        DataError: the shards are missing or damaged.
    """
    from tuner.console import Console
    from tuner.project import storage_place
    from tuner.search.begin import Options
    from tuner.search.driver import run as run_driver
    from tuner.storage import journal

    file = Path(file)
    options = Options(
        storage=storage_place(storage, file) if storage is None or isinstance(storage, str) else storage,
        tracking_uri=tracking_uri,
        overrides=tuple(overrides),
        address=address,
        resume=resume,
        extend=extend,
        retry_failed=retry_failed,
        search=search,
    )
    return journal.read(run_driver(file, experiment, options, Console()).directory)
