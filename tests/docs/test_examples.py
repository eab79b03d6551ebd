"""The scripts in `docs/examples/` run as they are, with other names and sizes at their top."""

import ast
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoForPreTraining, DinoModel


EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with `images` of two classes and a saved ViT, `my-dino`."""
    generator = np.random.default_rng(0)
    for label, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(8):
            noise = generator.integers(0, 50, (32, 32, 3), np.uint8)
            Image.fromarray(np.uint8(color) + noise).save(tmp_path / "images" / label / f"{i}.png")
    DinoForPreTraining(tiny_config()).save_pretrained(tmp_path / "my-dino")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(script: str, **constants) -> dict:
    """Runs a script with other constants than those at its top; returns its names."""
    tree = ast.parse((EXAMPLES / f"{script}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])) in constants:
            node.value = ast.Constant(constants.pop(name))
    assert not constants, "the script has no such constants"
    names = {"__name__": "__main__"}
    exec(compile(ast.fix_missing_locations(tree), f"{script}.py", "exec"), names)
    return names


def test_each_example_is_tested_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run_example("{path.stem}"' in source for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_pretraining(folder, capsys):
    run_example("pretrain_resnet18_32px", EPOCHS=1, BATCH_SIZE=8, WORKERS=0)
    assert DinoModel.from_pretrained("resnet18").config.backbone == "resnet18"
    assert (folder / "resnet18" / "curves.png").is_file()
    assert "resnet18 has features of 512 numbers" in capsys.readouterr().out


def test_a_classifier(folder, capsys):
    run_example("classifier_in_pytorch", EPOCHS=3, BATCH_SIZE=4, LEARNING_RATE=1e-2)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("epoch 3: loss ")
    assert last.endswith("accuracy 100.0 %")


def test_features_neighbours_and_attention(folder, monkeypatch):
    matplotlib.use("agg")
    shown = []
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: shown.append(len(matplotlib.pyplot.gcf().axes)))
    names = run_example("features_in_a_notebook", NEIGHBOURS=3)
    assert shown == [4, 5]
    assert names["nearest"][0] == 0
    assert names["similarities"][0] == pytest.approx(1, abs=1e-5)
    assert names["attention"].shape == (4, 4, 4)
    matplotlib.pyplot.close("all")
