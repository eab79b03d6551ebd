"""What a training run shows while it goes on."""

import re

import pytest
from random_crops import trainer_of


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_bar_and_a_line_an_epoch(tmp_path, capsys):
    trainer = trainer_of(tmp_path, disable_tqdm=False, save_strategy="epoch")
    trainer.train()
    shown = capsys.readouterr()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    lines = [line for line in re.split(r"[\r\n]+", shown.err) if line.startswith("epoch")]
    steps = len(losses) // 2
    assert [line.partition(", learning rate ")[0] for line in lines] == [
        f"epoch 1 of 2: loss {losses[steps - 1]:.3f}",
        f"epoch 2 of 2: loss {losses[-1]:.3f}",
    ]
    assert f"{2 * steps}/{2 * steps}" in shown.err
    assert "{'" not in shown.out + shown.err

    trainer = trainer_of(tmp_path, disable_tqdm=False, num_train_epochs=3)
    trainer.train(resume_from_checkpoint=True)
    shown = capsys.readouterr()
    assert f"{2 * steps}/{3 * steps}" in shown.err
    assert f" 0/{3 * steps}" not in shown.err
    assert "epoch 3 of 3: loss" in shown.err


def test_nothing_is_shown_without_progress(tmp_path, capsys):
    trainer_of(tmp_path, disable_tqdm=True).train()
    assert capsys.readouterr() == ("", "")
