"""What was logged is drawn at the end of each training, also of a trainer that is used without `dino pretrain`."""

import sys

import pytest
from PIL import Image
from random_crops import trainer_of


pytestmark = pytest.mark.usefixtures("drawn")


def test_a_trainer_of_ones_own_leaves_curves(tmp_path):
    trainer_of(tmp_path / "run", max_steps=2).train()
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.width > 500


def test_without_matplotlib_there_are_none(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # importing it raises ModuleNotFoundError
    trainer = trainer_of(tmp_path / "run", max_steps=1)
    trainer.train()
    assert not (tmp_path / "run" / "curves.png").exists()
    assert trainer.state.global_step == 1
