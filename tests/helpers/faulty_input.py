"""Makes faulty input: JSON with wrong values, and files that are cut or changed."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


DEEP = json.loads("[" * 900 + "]" * 900)
BAD_VALUES = [None, "text", "", -1, 0, 1.5, 1e300, 10**12, True, [], {}, ["a"], {"a": 1}, DEEP, "\x1b[31mred", "../.."]


@dataclass(frozen=True)
class Case:
    """
    A command on faulty input, in a copy of the healthy folder.

    Args:
        name: what is wrong.
        arguments: of `dino`.
        files: what to write before: path -> contents; None removes the file.
        code: the exit code that is right; None for 0 or 2, where damage may do no harm.
        says: what the message must have in it.
    """

    name: str
    arguments: list[str]
    files: dict[str, bytes | str | None] = field(default_factory=dict)
    code: int | None = None
    says: str = ""


def spoilt_json(file: Path) -> Iterator[tuple[str, str]]:
    """Yields a JSON file with each key left out, and with each value replaced by each bad one: what is wrong, text."""
    content = json.loads(file.read_text(encoding="utf-8"))
    for key in content:
        yield f"no {key}", json.dumps({name: value for name, value in content.items() if name != key})
        for bad in BAD_VALUES:
            yield f"{key}={str(bad)[:20]!r}", json.dumps({**content, key: bad})


def damaged(file: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Yields a file cut, and with a byte changed, at so many places, the same each time: what is wrong, bytes."""
    content, draw = file.read_bytes(), random.Random(0)
    for _ in range(count):
        at = draw.randrange(len(content))
        yield f"cut at {at}", content[:at]
        yield f"changed at {at}", content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]
