"""Checkpoints from which a run goes on: those that are whole in all their parts; others are passed over by name."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
from random_crops import trainer_of

from modeling_dino.training.checkpoints import PARTS_NAME, checkpoint_to_resume, damage_of, last_whole_checkpoint


PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth")


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread) -> Path:
    """A run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, save_strategy="steps", save_steps=1, max_steps=2).train()
    return folder


@pytest.fixture
def damaged(run, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(run, tmp_path / "run")


class Foreign:
    """Ends the process if it is unpickled."""

    def __reduce__(self):
        return os._exit, (70,)


def cut(file: Path):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def changed(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def foreign(file: Path):
    file.write_bytes(pickle.dumps(Foreign()))


def emptied(file: Path):
    file.write_bytes(b"")


DAMAGES = (Path.unlink, cut, changed, foreign, emptied)


def test_a_whole_checkpoint_lists_its_parts(run):
    for step in (1, 2):
        parts = json.loads((run / f"checkpoint-{step}" / PARTS_NAME).read_text())["files"]
        assert set(parts) == {file.name for file in (run / f"checkpoint-{step}").iterdir()} - {PARTS_NAME}
        assert set(parts) >= {*PARTS, "config.json", "preprocessor_config.json"}
    assert checkpoint_to_resume(run) == str(run / "checkpoint-2")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_with_a_missing_or_damaged_part_is_passed_over(damaged, messages, caplog, part, damage):
    damage(damaged / "checkpoint-2" / part)
    assert last_whole_checkpoint(damaged) == str(damaged / "checkpoint-1")
    assert checkpoint_to_resume(damaged) == str(damaged / "checkpoint-1")
    said = f"it lacks {part}" if damage is Path.unlink else f"{part} is damaged"
    assert f"checkpoint-2 is not whole, {said}: it is kept as set-aside-checkpoint-2" in "".join(messages())
    assert not (damaged / "checkpoint-2").exists()
    caplog.clear()
    assert checkpoint_to_resume(damaged) == str(damaged / "checkpoint-1")
    assert not messages()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not changed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("part", PARTS)
def test_without_a_list_the_parts_must_be_there_and_readable(damaged, part, damage):
    """As of an older version."""
    (damaged / "checkpoint-2" / PARTS_NAME).unlink()
    assert damage_of(damaged / "checkpoint-2") is None
    damage(damaged / "checkpoint-2" / part)
    said = f"it lacks {part}" if damage is Path.unlink else f"{part} is damaged"
    assert damage_of(damaged / "checkpoint-2") == said


@pytest.mark.parametrize("text", ["", "[]", '{"files": 1}', '{"files": {"model.safetensors": [1]}}', "[" * 10_000])
def test_a_damaged_list(damaged, text):
    (damaged / "checkpoint-2" / PARTS_NAME).write_text(text)
    assert damage_of(damaged / "checkpoint-2") == "parts.json is damaged"


def test_what_was_not_written_to_its_end_is_removed(damaged, messages):
    for name in (PARTS_NAME, "trainer_state.json"):
        (damaged / "checkpoint-2" / name).unlink()
    (damaged / "checkpoint-3").mkdir()
    assert checkpoint_to_resume(damaged) == str(damaged / "checkpoint-1")
    assert "checkpoint-2 was not written to its end, it lacks trainer_state.json: it is removed" in "".join(messages())
    assert not list(damaged.glob("*checkpoint-[23]"))


def test_a_save_that_was_stopped_at_its_end_is_completed(damaged):
    """Between the last part and the list of parts, when older checkpoints may not have been removed."""
    expected = (damaged / "checkpoint-2" / PARTS_NAME).read_bytes()
    (damaged / "checkpoint-2" / PARTS_NAME).unlink()
    (damaged / "checkpoint-1" / "model.safetensors").unlink()  # half removed
    trainer = trainer_of(damaged, save_strategy="steps", save_steps=1, max_steps=2, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in damaged.glob("*checkpoint*")] == ["checkpoint-2"]
    assert (damaged / "checkpoint-2" / PARTS_NAME).read_bytes() == expected


def test_a_checkpoint_that_is_named_must_be_whole(damaged):
    cut(damaged / "checkpoint-2" / "optimizer.pt")
    with pytest.raises(ValueError, match=r"checkpoint-2 is not whole: optimizer\.pt is damaged"):
        trainer_of(damaged).train(resume_from_checkpoint=str(damaged / "checkpoint-2"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_part_that_may_not_be_read_is_no_damage(damaged):
    (damaged / "checkpoint-2" / "optimizer.pt").chmod(0)
    with pytest.raises(PermissionError, match=r"optimizer\.pt"):
        checkpoint_to_resume(damaged)
