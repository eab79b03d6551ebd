# SPDX-License-Identifier: Apache-2.0
"""Keeps the folder of a long run, with a JSON file about it, so that the same run goes on where it stopped."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from .json_files import check_types, read_json
from .whole_files import LOCK, PARTIAL, is_partial, one_writer, whole_file


class Format(TypedDict):
    """The mark of a JSON file of this package, which other programs' files of that name lack."""

    format: NotRequired[Any]


class RunFacts(TypedDict):
    """Holds what the JSON file of every run has."""

    format: str
    settings: dict[str, Any]
    complete: bool


class RunFolder:
    """
    A folder that one run writes to, and that the same run opens again after it was stopped.

        with folder.opened(overwrite):  # in one process of the run; no other run can write to the folder meanwhile
            ...
            folder.close(results=results)

    Subclasses name the JSON file (`file_name`), its `format`, the types of its values (`schema`), what a run leaves
    (`contents`) and the command that writes it (`command`), and explain what it means that some settings differ
    (`explanations`); `has_results` and `clear` say what there is to lose.

    Args:
        path: the folder, which need not exist yet.
        settings: everything that makes two runs the same, as values that JSON can store.
    """

    file_name: str
    format: str
    schema: type = RunFacts
    contents: str
    command: str
    explanations: dict[str, str] = {}

    def __init__(self, path: str | os.PathLike, settings: dict):
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.facts: dict[str, Any] = {}

    def has_results(self) -> bool:
        """Returns whether a stopped run has left something that it would go on from."""
        raise NotImplementedError

    def clear(self):
        """Removes what another run has left."""
        raise NotImplementedError

    def check(self, overwrite: bool):
        """
        Reads the facts about the run that the folder has, if it has one. Raises ValueError if the folder has another
        run (and `overwrite` is not given), or anything else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: choose another output folder")
        if not self.path.is_dir() or all(file.name == LOCK or is_partial(file) for file in self.path.iterdir()):
            return
        self.facts = self.read(self.path)
        is_other = not self.goes_on_from(self.facts["settings"])
        if is_other and not overwrite and (self.facts["complete"] or self.has_results()):
            difference = first_difference(self.facts["settings"], self.settings)
            explanation = self.explanations.get(difference.partition(":")[0])
            explanation = f" ({explanation})" if explanation else ""
            raise ValueError(
                f"{self.path} has {self.contents} of other settings, {difference}{explanation}: choose another "
                "folder, or pass --overwrite to start anew"
            )

    def goes_on_from(self, settings: dict) -> bool:
        """Returns whether this run goes on from what a run of these settings has left."""
        return settings == self.settings

    @property
    def is_complete(self) -> bool:
        """Whether the run that `check` found is complete, and of the same settings."""
        return self.facts.get("complete", False) and self.facts["settings"] == self.settings

    @contextmanager
    def opened(self, overwrite: bool) -> Iterator[None]:
        """
        Checks and opens the folder, and holds it until the run ends, in one of the processes of the run.

        What fails or is interrupted before there are results leaves no folder behind that was not there before; but
        where several processes write to it, it stays, since the others may still write.

        Raises:
            ValueError: if another run writes to the folder, or it holds something else, as by `check`.
            OSError: if it cannot be written.
        """
        self.check(overwrite)  # before the lock is written into what may be somebody else's folder
        is_new = not self.path.exists()
        with one_writer(self.path):
            try:
                self.check(overwrite)
                self.open(overwrite)
                yield
            except BaseException:
                if os.environ.get("WORLD_SIZE", "1") == "1":
                    self.discard(is_new)
                raise

    def discard(self, is_new: bool = False):
        """Removes the JSON file if the run has left nothing else, and then the folder, too, if it is new."""
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            files = list(self.path.iterdir())
            if not all(file.name in (self.file_name, LOCK) or is_partial(file) for file in files):
                return
            for file in files:
                if is_new or file.name != LOCK:
                    file.unlink(missing_ok=True)
            if is_new:
                self.path.rmdir()

    def open(self, overwrite: bool):
        """Makes the folder, or opens it to go on; removes what another run left, as `check` allowed."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.facts and (overwrite or not self.goes_on_from(self.facts["settings"])):
            self.write(complete=False, settings={})  # of no run, until all that it left is gone
            self.clear()
        for file in self.path.rglob(f".*{PARTIAL}"):  # in checkpoints, too
            file.unlink(missing_ok=True)
        self.write(complete=False)

    def close(self, **facts):
        """Writes that the run is complete, with its results."""
        self.write(complete=True, **facts)

    def write(self, **facts):
        """Writes the JSON file."""
        self.facts = {"format": self.format, "settings": self.settings, **facts}
        with whole_file(self.path / self.file_name) as partial:
            partial.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> dict[str, Any]:
        """
        Reads the JSON file of a folder.

        Raises:
            ValueError: if there is none of this format, or it is damaged.
            OSError: if it may not be read.
        """
        path = Path(folder) / cls.file_name
        facts = read_json(path, Format) if path.is_file() else {}
        if facts.get("format") != cls.format:
            raise ValueError(
                f"{folder} holds something other than {cls.contents} of `{cls.command}`: choose another folder"
            )
        check_types(facts, cls.schema, path)
        return facts


def first_difference(old: dict, new: dict) -> str:
    """Returns the first setting that differs, as `name: old -> new`."""
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                return f"{name}.{first_difference(old[name], new[name])}"
            return f"{name}: {old.get(name)} -> {new.get(name)}"
    return ""
