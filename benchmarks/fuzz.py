"""Changed files: whatever a disk, a network or a hand made of them, they are refused in a sentence, or read rightly.

    python benchmarks/fuzz.py --minutes 10 [--seed 1] [--only KIND]      or one case again:  --seed 1 --case 4711

Each case makes a few changes in a sound file and reads it: shards (their framing, their compression, and records whose
CRCs are sound), yaml, journals, checkpoints, csv files, teacher predictions and model folders. Found are: an error that
is not one of the project's own (a traceback), a process that dies, a case that takes longer than HANG seconds, and a
value that the file does not hold. benchmarks/fuzzed/ says for each kind what must hold. A case depends on the seed and
its number alone. The last line is one JSON object; the exit code is 1 if something was found.
"""

import argparse
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from card import show
from fuzzed.targets import Target, Wrong

from data.errors import DataError
from data.ranges import HUGE, SEED, Range
from tuner.errors import ConfigError, TunerError

HANG = 30  # seconds that one case may take
MEMORY = 24 << 30  # bytes of addresses that the process may have, so that a forged length is found and kills nothing
SHOWN = 20  # findings that are printed in full
Outcome = tuple[int, str, str]  # number of the case; "read", "refused" or "found"; what was found


def targets() -> dict[str, type[Target]]:
    """The kinds of files, in the order in which the cases take them."""
    from fuzzed import shards, states, texts

    return {target.kind: target for module in (shards, texts, states) for target in module.TARGETS}


def run_case(target: Target, seed: int, number: int) -> tuple[str, str]:
    """Run one case; returns its outcome and what was found."""
    try:
        target.run(random.Random(f"{seed} {number}"))
    except (DataError, TunerError) as error:
        sentence = str(error)
        # The mistakes of a yaml file are told together, a line for each.
        bad = not sentence.strip() or ("\n" in sentence and not isinstance(error, ConfigError))
        return ("found", f"not one sentence: {sentence!r}") if bad else ("refused", "")
    except Wrong as error:
        return "found", f"read as another value: {error}"
    except Exception as error:
        *_, last = traceback.format_exception_only(error)
        *_, frame = traceback.extract_tb(error.__traceback__)
        return "found", f"{last.strip()} in {Path(frame.filename).name}\n{traceback.format_exc()}"
    return "read", ""


def work(pipe: "Connection[Outcome, None]", seed: int, numbers: Iterator[int], folder: Path) -> None:
    """Run cases in this process and send the outcome of each; the number of the case that runs goes ahead."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kinds = list(targets().values())
    ready: dict[int, Target] = {}
    for number in numbers:
        which = number % len(kinds)
        if which not in ready:
            place = folder / kinds[which].kind
            place.mkdir()
            ready[which] = kinds[which](place)
        pipe.send((number, "begun", ""))
        pipe.send((number, *run_case(ready[which], seed, number)))


def outcomes(seed: int, numbers: Iterator[int], until: float) -> Iterator[Outcome]:
    """Run cases until then; a process that dies or hangs is an outcome too, and the next one goes on behind it."""
    context = multiprocessing.get_context("fork")
    number = -1
    while time.monotonic() < until:
        ours, theirs = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            rest = (later for later in numbers if later > number)
            process = context.Process(target=work, args=(theirs, seed, rest, Path(folder)), daemon=True)
            process.start()
            theirs.close()
            before = number
            died = ""
            try:
                while time.monotonic() < until:
                    if not ours.poll(HANG if number > before else 10 * HANG):  # the first case waits for imports
                        died = f"took longer than {HANG} s"
                        break
                    number, outcome, what = ours.recv()
                    if outcome != "begun":
                        yield number, outcome, what
            except EOFError:
                process.join()
                if process.exitcode == 0:
                    return
                died = f"the process died (exit code {process.exitcode})"
            finally:
                process.kill()
                process.join()
        if died:
            yield number, "found", died
            if number == before:
                return


def main() -> int:
    kinds = list(targets())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=Range(0, HUGE, "low").number, default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=SEED.whole, default=1, help="default: %(default)s")
    parser.add_argument("--only", choices=kinds, metavar="KIND", help=f"one of: {', '.join(kinds)}")
    parser.add_argument("--case", type=SEED.whole, metavar="N", help="run this one again")
    options = parser.parse_args()
    started = time.monotonic()
    first = kinds.index(options.only) if options.only else 0
    numbers = iter([options.case]) if options.case is not None else count(first, len(kinds) if options.only else 1)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    found: dict[str, list[int]] = {}
    for number, outcome, what in outcomes(options.seed, numbers, started + 60 * options.minutes):
        kind = kinds[number % len(kinds)]
        counts[kind][outcome] += 1
        if outcome == "found":
            same = found.setdefault(f"{kind}: {what.splitlines()[0]}", [])
            same.append(number)
            if len(same) == 1 and len(found) <= SHOWN:
                print(f"{kind}: --seed {options.seed} --case {number}\n{what}", flush=True)
    cases = sum(sum(counted.values()) for counted in counts.values())
    seconds = time.monotonic() - started
    show(
        "fuzz",
        f"{cases:,} changed files, seed {options.seed}",
        [
            ["kind", "read", "refused", "found"],
            *([kind, *(f"{counts[kind][one]:,}" for one in ("read", "refused", "found"))] for kind in kinds),
        ],
        [f"{len(found)} kinds of faults, {cases / seconds:.0f} cases a second"],
        {
            "seed": options.seed,
            "seconds": round(seconds, 1),
            "cases": cases,
            "found": {what: numbers[:5] for what, numbers in found.items()},
            "by_kind": {kind: dict(counted) for kind, counted in counts.items()},
        },
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
