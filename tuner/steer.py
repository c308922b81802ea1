"""Steer a search that runs, from any machine that reaches its storage.

    python -m tuner.steer EXPERIMENT try PATH=VALUE ... | drop NUMBER | pause | resume | trials N | stop

The driver of the search answers within seconds, here and on its own screen.
"""

import argparse
import sys
import time

from tuner.cli import add_file, add_storage, main
from tuner.errors import SearchError
from tuner.project import storage_place
from tuner.storage import journal, requests, searches
from tuner.storage.place import Place

ARGUMENTS = {"try": "PATH=VALUE ...", "drop": "NUMBER", "pause": "", "resume": "", "trials": "N", "stop": ""}
PATIENCE_SECONDS, POLL_SECONDS = 10.0, 0.3


def run(arguments: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SearchError: no such search runs; or its driver refuses the request, or does not answer.
    """
    parser = argparse.ArgumentParser(prog="python -m tuner.steer", description="Steer a search that runs.")
    parser.add_argument("experiment", metavar="EXPERIMENT")
    usage = ", ".join(f"{verb} {after}".strip() for verb, after in ARGUMENTS.items())
    parser.add_argument("verb", metavar="COMMAND", choices=ARGUMENTS, help=usage)
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of the command")
    parser.add_argument("--search", metavar="ID", help="default: the newest search that has not ended")
    add_storage(parser)
    add_file(parser)
    options = parser.parse_intermixed_args(arguments)
    wanted = ARGUMENTS[options.verb]
    if len(options.arguments) != bool(wanted) and not (options.verb == "try" and options.arguments):
        parser.error(f"{options.verb} takes {wanted or 'no argument'}")
    directory = _running(storage_place(options.storage, options.file), options.experiment, options.search)
    answer = _ask(directory, options.verb, options.arguments)
    if not answer.accepted:
        raise SearchError(answer.said)
    print(answer.said)


def _running(storage: Place, experiment: str, id: str | None) -> Place:
    """The folder of the search: the one that is named, or the newest one that has not ended."""
    found = [searches.find(storage, experiment, id)] if id else searches.of(storage, experiment)[::-1]
    for directory in found:
        if not journal.read(directory).ended:
            return directory
    search = journal.read(found[0])
    raise SearchError(f"search {search.id} of {experiment} has ended ({search.ended}), so it cannot be steered")


def _ask(directory: Place, verb: str, arguments: list[str]) -> requests.Answer:
    """Send a request and wait for its answer."""
    id = requests.send(directory, verb, arguments)
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if answer := requests.take_answer(directory, id):
            return answer
        time.sleep(POLL_SECONDS)
    requests.withdraw(directory, id)
    if answer := requests.take_answer(directory, id):  # the driver has just taken it
        return answer
    search = journal.read(directory)
    last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(search.last_entry))
    raise SearchError(
        f"no driver of search {search.id} answers, and the request is withdrawn; its journal has no entry since {last} "
        "(tune.py --resume continues a search that was interrupted)"
    )


def command() -> int:
    """Run the command line as a console script, and return the exit code of its process."""
    return main(run)


if __name__ == "__main__":
    sys.exit(command())
