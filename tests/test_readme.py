"""Everything the README shows is run: its Python and its commands, in order, in one folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from modeling_dino import cli
from modeling_dino.demo import copy_photographs


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_and_commands(tmp_path, monkeypatch):
    copy_photographs(tmp_path / "photographs")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", README, flags=re.DOTALL):
        if language == "python":
            exec(compile(code, "README.md", "exec"), {})
            ran += 1
            continue
        for line in code.splitlines():
            command = shlex.split(line, comments=True)
            if command[:1] == ["dino"]:
                monkeypatch.setattr(sys, "argv", command)
                with pytest.raises(SystemExit) as stop:
                    cli.main()
                assert stop.value.code == 0, line
                ran += 1
    assert ran >= 5


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"`(\w+/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path


def test_presets_in_the_table_are_those_there_are():
    from modeling_dino import DinoConfig

    assert set(re.findall(r"`((?:dino|imagenet|cifar10)_\w+)`", README)) <= set(DinoConfig.presets())
