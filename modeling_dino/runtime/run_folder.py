# SPDX-License-Identifier: Apache-2.0
"""Keeps the folder of a long run, with a JSON file about it, so that the same run goes on where it stopped."""

import json
import os
from pathlib import Path
from typing import Any

from .whole_files import is_partial, whole_file


class RunFolder:
    """
    A folder that one run writes to, and that the same run opens again after it was stopped.

    Subclasses name the JSON file (`file_name`), its `format`, what a run leaves (`contents`) and the command that
    writes it (`command`), and explain what it means that some settings differ (`explanations`); `has_results` and
    `clear` say what there is to lose.

    Args:
        path: the folder, which need not exist yet.
        settings: everything that makes two runs the same, as values that JSON can store.
    """

    file_name: str
    format: str
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
        if not self.path.is_dir() or all(map(is_partial, self.path.iterdir())):
            return
        self.facts = self.read(self.path)
        is_other = self.facts["settings"] != self.settings
        if is_other and not overwrite and (self.is_complete or self.has_results()):
            difference = first_difference(self.facts["settings"], self.settings)
            explanation = self.explanations.get(difference.partition(":")[0])
            explanation = f" ({explanation})" if explanation else ""
            raise ValueError(
                f"{self.path} has {self.contents} of other settings, {difference}{explanation}: choose another "
                "folder, or pass --overwrite to start anew"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the run that `check` found is complete."""
        return self.facts.get("complete", False)

    def open(self, overwrite: bool):
        """Makes the folder, or opens it to go on; removes what another run left, as `check` allowed."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.facts and (overwrite or self.facts["settings"] != self.settings):
            self.write(complete=False, settings={})  # of no run, until all that it left is gone
            self.clear()
        for file in self.path.iterdir():
            if is_partial(file):
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
    def read(cls, folder: str | os.PathLike) -> dict:
        """Reads the JSON file of a folder; raises ValueError if there is none of this format."""
        try:
            facts = json.loads((Path(folder) / cls.file_name).read_text(encoding="utf-8"))
            if facts["format"] == cls.format:
                return facts
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise ValueError(
            f"{folder} holds something other than {cls.contents} of `{cls.command}`: choose another folder"
        )


def first_difference(old: dict, new: dict) -> str:
    """Returns the first setting that differs, as `name: old -> new`."""
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                return f"{name}.{first_difference(old[name], new[name])}"
            return f"{name}: {old.get(name)} -> {new.get(name)}"
    return ""
