"""Everything the README shows is run: its Python and its commands, in order, in one folder, with a hub on loopback."""

import re
import shlex
from pathlib import Path

import pytest
from hub_server import running_hub
from processes import run_python

from modeling_dino.demo.images import copy_photographs, cut_photographs


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

RUN = """
import sys
from modeling_dino import cli

for code in {steps!r}:
    if isinstance(code, str):
        exec(compile(code, "README.md", "exec"), {{}})
        continue
    sys.argv = code
    try:
        cli.main()
    except SystemExit as stop:
        assert stop.code == 0, code
"""


def steps() -> list[str | list[str]]:
    """The Python, and the arguments of the commands."""
    found = []
    for language, code in re.findall(r"```(python|bash)\n(.*?)```", README, flags=re.DOTALL):
        commands = [shlex.split(line, comments=True) for line in code.splitlines()] if language == "bash" else []
        found += [code] if language == "python" else [command for command in commands if command[:1] == ["dino"]]
    return found


@pytest.mark.slow
def test_python_and_commands(tmp_path):
    photographs = copy_photographs(tmp_path / "photographs")
    cut_photographs(photographs[:2], tmp_path, seed=0)  # `views` and `distorted`
    for photograph in photographs[8:]:  # as many as a batch of `small_data`; more take longer
        photograph.unlink()
    assert len(steps()) >= 8
    with running_hub() as hub:
        run_python(RUN.format(steps=steps()), tmp_path, environment=hub.environment())
        assert "modeling_dino.py" in hub.files("me/my-dino")


def test_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)`?", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"`(\w+/[\w/.]*)`", README):
        assert (ROOT / path).exists() or (ROOT / "modeling_dino" / path).exists(), path


def test_presets_in_the_table_are_those_there_are():
    from modeling_dino import DinoConfig

    assert set(re.findall(r"`((?:dino|imagenet|cifar10)_\w+)`", README)) <= set(DinoConfig.presets())
