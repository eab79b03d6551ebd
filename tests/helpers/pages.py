"""Reads the README and the pages of docs/ as a reader does: what they say to install, write and run, in order."""

import re
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement


try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """One thing that a reader does: runs Python, types a command (words), or writes a file (name and text)."""

    kind: str
    content: str | list[str]
    name: str = ""


def steps(page: Path) -> list[Step]:
    """The blocks of Python, the lines of bash, and the files that have a title."""
    found = []
    for language, title, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            found.append(Step("file", code, title))
        elif language == "python":
            found.append(Step("python", code))
        elif language == "bash":
            lines = code.replace("\\\n", " ").splitlines()
            found += [Step("command", words) for line in lines if (words := shlex.split(line, comments=True))]
    return found


def installed(page: Path) -> tuple[set[str], set[str]]:
    """The extras, and the other distributions, that the page says to install."""
    words = [word for step in steps(page) if step.content[:2] == ["pip", "install"] for word in step.content[2:]]
    extras = {name for word in words if word.startswith(".[") for name in word[2:-1].split(",")}
    return extras, {word for word in words if not word.startswith((".", "-"))}


def modules_not_installed(extras: set[str], others: set[str]) -> set[str]:
    """The top-level modules of this environment that are not there for who installs these extras and others alone."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = content["optional-dependencies"]
    installed: set[str] = {"modeling-dino"}

    def install(requirement: str, extra: str = ""):
        wanted = Requirement(requirement)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            return
        name = _canonical(wanted.name)
        if name == "modeling-dino":
            for other in wanted.extras:
                for line in optional[other]:
                    install(line)
            return
        if name in installed and not wanted.extras:
            return
        installed.add(name)
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            return
        for line in needed:
            for one in {"", *wanted.extras}:
                install(line, one)

    for line in [*content["dependencies"], *others, *(line for extra in extras for line in optional[extra])]:
        install(line)
    owners = packages_distributions().items()
    return {module for module, names in owners if not {_canonical(name) for name in names} & installed}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
