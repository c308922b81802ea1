"""Requests to a running search: small files in its folder, which its driver reads and answers (`tuner.steer`).

<search>/steer/<id>.json      a request: verb, arguments
<id>.answer    what became of it: accepted, said; the command that has sent the request removes it
"""

import json
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.atomic import replacing
from tuner.storage.place import Place, store_errors
from tuner.storage.stores import at

FOLDER = "steer"


@dataclass(frozen=True, slots=True)
class Request:
    """A request; its id is unique, and ids sort by time."""

    id: str
    verb: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    accepted: bool
    said: str  # in a sentence


def send(search: Place, verb: str, arguments: Sequence[str]) -> str:
    """Write a request into the folder of a search, and return its id."""
    id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex}"
    _write(search / FOLDER / f"{id}.json", {"verb": verb, "arguments": list(arguments)})
    return id


def take_answer(search: Place, id: str) -> Answer | None:
    """Read and remove the answer to a request; None: there is none yet."""
    file = search / FOLDER / f"{id}.answer"
    try:
        with store_errors(str(file)):
            answer = Answer(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None
    except FileNotFoundError:
        return None
    if answer:
        file.unlink(missing_ok=True)
    return answer


def withdraw(search: Place, id: str) -> None:
    """Remove a request."""
    with suppress(FileNotFoundError):
        (search / FOLDER / f"{id}.json").unlink()


def read_all(search: Place) -> list[Request | str]:
    """The requests that wait, oldest first; of one that cannot be read, its id."""
    found: list[Request | str] = []
    for name in sorted(path.name for path in (search / FOLDER).glob("[!.]*.json")):
        file, id = search / FOLDER / name, name.removesuffix(".json")
        with suppress(FileNotFoundError):  # it was withdrawn
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                found.append(Request(id, str(content["verb"]), tuple(map(str, content["arguments"]))))
            except (ValueError, KeyError, TypeError):
                found.append(id)
    return found


def answer(search: Place, id: str, answer: Answer) -> None:
    """Answer a request, and remove it."""
    _write(search / FOLDER / f"{id}.answer", {"accepted": answer.accepted, "said": answer.said})
    withdraw(search, id)


def _write(file: Place, content: dict[str, object]) -> None:
    text = json.dumps(content)
    if isinstance(file, Path):
        at(file.parent).make()
        with replacing(file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    else:
        with store_errors(str(file)):
            file.write_text(text, encoding="utf-8")
