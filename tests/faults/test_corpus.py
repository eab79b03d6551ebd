"""Hostile and faulty input, made by code: every command ends right, or with one line that says what is wrong.

Each module `cases_….py` beside this one has `cases(healthy)`, which yields [`Case`]s on copies of the healthy folder.
`DINO_FAULTS=all` tries all of them, which takes twice as long as every second one.
"""

import importlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_input import Case
from forked_commands import ForkedCommands, Outcome


pytestmark = pytest.mark.slow
MODULES = sorted(file.stem for file in Path(__file__).parent.glob("cases_*.py"))
EACH = 1 if os.environ.get("DINO_FAULTS") == "all" else 2  # of how many cases one is tried
LEAST = 600  # cases in all


def run(case: Case, healthy: Path, place: Path, commands: ForkedCommands) -> Outcome:
    """Runs a case in a copy of the healthy folder, whose files are shared until they are replaced."""
    shutil.copytree(healthy, place, symlinks=True, copy_function=lambda old, new: Path(new).hardlink_to(old))
    for name, content in case.files.items():
        file = place / name
        file.unlink(missing_ok=True)
        if content is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    outcome = commands(*case.arguments, folder=place, seconds=10)
    shutil.rmtree(place)
    return outcome


def is_right(case: Case, outcome: Outcome) -> bool:
    """Returns whether a command succeeded, or said what is wrong in one line, as the case wants it."""
    messages = [line for line in outcome.err.splitlines() if line.startswith(("dino: ", "Error: "))]
    is_clean = "Traceback" not in outcome.err and "\x1b" not in outcome.err + outcome.out
    is_said = outcome.code != 2 or len(messages) == 1
    is_code = outcome.code in ((0, 2) if case.code is None else (case.code,))
    return is_code and is_said and is_clean and case.says in outcome.err + outcome.out


def chosen_cases(module: str, healthy: Path) -> Iterator[Case]:
    """The cases of a module that are tried."""
    yield from itertools.islice(importlib.import_module(module).cases(healthy), 0, None, EACH)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_ends_with_a_traceback(module, healthy, commands, tmp_path, record_property):
    counts, wrong = Counter(), []
    for case in chosen_cases(module, healthy):
        outcome = run(case, healthy, tmp_path / "case", commands)
        counts["tried"] += 1
        if is_right(case, outcome):
            counts["refused" if outcome.code else "succeeded"] += 1
        else:
            wrong.append(f"{case.name}: {case.arguments} -> {outcome.code}, {outcome.err[-400:]!r}")
    record_property("faulty input", f"{module}: {dict(counts)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


def test_there_are_enough_cases(healthy):
    assert sum(1 for module in MODULES for _ in chosen_cases(module, healthy)) >= LEAST


@pytest.mark.parametrize(
    ("case", "code", "err", "right"),
    [
        (Case("refused", []), 2, "dino: no\n", True),
        (Case("two lines", []), 2, "dino: no\ndino: no\n", False),
        (Case("silent", []), 2, "", False),
        (Case("unforeseen", []), 1, "dino: unforeseen\n", False),
        (Case("traceback", []), 2, "Traceback\ndino: no\n", False),
        (Case("escape", []), 0, "\x1b[31m", False),
        (Case("should be refused", [], code=2), 0, "", False),
        (Case("says too little", [], says="image"), 2, "dino: no\n", False),
        (Case("too long", []), -14, "", False),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_wrong_is_seen(case, code, err, right):
    assert is_right(case, Outcome(code, "", err)) == right
