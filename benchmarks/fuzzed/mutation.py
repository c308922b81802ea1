"""Changes of bytes and of text, as disks, networks and hands make them."""

import random

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)
# Words at the ends of what a format can say; each has once been misread by some program.
WORDS = (
    "",
    " ",
    "0",
    "-1",
    "-0",
    "1e-3",
    "1e999",
    "nan",
    ".nan",
    ".inf",
    "1_0",
    "0x1F",
    "010",
    "1:30",
    "3000000000",
    "99999999999999999999",
    "9" * 5000,
    "0.5",
    "1.5",
    "true",
    "no",
    "null",
    "~",
    "2001-01-01",
    "\u0663",
    "\u00b2",
    "é",
    "\ufeff",
    "\x00",
    "\x85",
    "\ud800",
    "'",
    '"',
    "[",
    "{}",
    "[[1]]",
    "[" * 5000,
    "- " * 3000,
    "<<",
    "*a",
    "&a",
    "&a [*a]",
    "!!int x",
    "!!binary aGk=",
    "!!set {a}",
    "!!python/object:os.system",
    "? [a]",
    "${",
    "${HOME}",
    "${NOBODY:-7}",
    "%",
    "#",
    "|",
    ":",
    ",",
    "\n",
    "\t",
    "\r",
)


def changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to three changes; they may, seldom, be the same bytes."""
    for _ in range(rng.randint(1, 3)):
        data = _change(data, rng)
    return data


def _change(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    size = min(rng.choice((1, 1, 2, 4, 8, 64, 512)), len(data) - at)
    span = data[at : at + size]
    match rng.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + size :]
        case 2:
            return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + data[at:]
        case 3:
            return data[:at] + span + data[at:]
        case 4:
            return data[:at] + bytes(size) + data[at + size :]
        case 5:
            other = rng.randrange(len(data) + 1)
            return data[:other] + span + data[other + size :]
        case 6 if span:
            return data[:at] + bytes([span[0] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 7 if span:
            return data[:at] + bytes([rng.choice(_NUMBERS)]) + data[at + 1 :]
        case _ if span:
            return data[:at] + bytes([(span[0] + rng.choice((-1, 1))) % 256]) + data[at + 1 :]
    return data


def changed_text(text: str, rng: random.Random) -> bytes:
    """Text, encoded, of which one to three words or lines are others; or `changed` bytes of it."""
    if rng.random() < 0.25:
        return changed(text.encode(), rng)
    for _ in range(rng.randint(1, 3)):
        text = _change_text(text, rng)
    return text.encode(errors="surrogatepass")


def _change_text(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = rng.randrange(len(lines))
    line = lines[at]
    match rng.randrange(5):
        case 0:
            lines[at] = line + line
        case 1:
            lines[at] = lines[rng.randrange(len(lines))]
        case 2:
            lines[at] = rng.choice(("", " ", "  ", "\t")) + (line[1:] if line[:1] == " " else line)
        case _:
            begin, end = _word(line, rng)
            lines[at] = line[:begin] + rng.choice(WORDS) + line[end:]
    return "".join(lines)


def _word(line: str, rng: random.Random) -> tuple[int, int]:
    """Where a word of the line begins and ends; of an empty one, both are 0."""
    begin = end = rng.randrange(len(line)) if line else 0
    while begin and (line[begin - 1].isalnum() or line[begin - 1] in "._-+"):
        begin -= 1
    while end < len(line) and (line[end].isalnum() or line[end] in "._-+"):
        end += 1
    return begin, end
