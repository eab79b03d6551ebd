import pytest
import typer

from modeling_dino.cli.app import app
from modeling_dino.training.recipes import KEYS, recipes


COMMANDS = typer.main.get_command(app).commands


def words(text: str) -> str:
    """The text without line breaks and hyphenation, at which the help may wrap it."""
    return "".join(text.split())


@pytest.mark.parametrize("columns", ["30", "80", "200"])
def test_help_is_not_cut(dino, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = words(dino("--help")[1])
    for name, command in COMMANDS.items():
        assert words(name + command.help) in out
        shown = words(dino(name, "--help")[1])
        assert words(command.help) in shown
        assert all(words(parameter.help or "") in shown for parameter in command.params)


def test_the_help_of_pretrain_has_recipes_and_keys(dino):
    _, out, _ = dino("pretrain", "--help")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()[0] in recipes()]
    for name in recipes():
        assert f"\n  {name} " in out
    shown = {word.partition("=")[0]: word.partition("=")[2] for word in out.split() if "=" in word}
    missing = {key for key in KEYS if key not in shown and not key.startswith("training.")}
    assert missing == {"model.depths"}  # derived from the backbone, so that it has no default
    assert shown["crops.local_crop_size"] == "96"
    assert shown["training.teacher_momentum"] == "0.996"
    assert shown["training.learning_rate"] == "base_learning_rate*batch_size/256"
    assert "training.output_dir" not in shown


def test_the_help_of_pretrain_without_its_extra_says_how_to_have_it(dino, monkeypatch):
    def fail():
        raise ImportError("torchvision is not installed: run `pip install torchvision`")

    monkeypatch.setattr("modeling_dino.cli.help.MORE_HELP", {"pretrain": fail})
    code, out, _ = dino("pretrain", "--help")
    assert code == 0
    assert words("run `pip install torchvision`") in words(out)
