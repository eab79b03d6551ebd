"""What training code wraps around a state dict is taken off and said, and files stay as safe to read as before."""

import argparse
import pathlib

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_config

from conversion_scripts.checkpoint import read_checkpoint
from conversion_scripts.recognition import to_dino
from modeling_dino import DinoModel


@pytest.fixture(scope="module")
def model() -> DinoModel:
    return DinoModel(tiny_config(num_attention_heads=2)).eval()


def prefixed(state_dict: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state_dict.items()}


def notes_of(path, expected: dict, which: str = "teacher") -> str:
    """Converts a file, whose tensors must be the expected ones; returns the notes."""
    conversion = to_dino(str(path), which, num_heads=2)
    assert set(conversion.state_dict) == set(expected)
    assert all(torch.equal(conversion.state_dict[name], tensor) for name, tensor in expected.items())
    return "\n".join(conversion.checkpoint.notes)


@pytest.mark.parametrize("entry", ["state_dict", "model", "network"])
def test_an_entry_of_a_file(tmp_path, model, entry):
    torch.save({entry: model.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "file.pth")
    notes = notes_of(tmp_path / "file.pth", model.state_dict())
    assert notes == f"took the entry {entry!r} of the file, and left out epoch, optimizer"


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "encoder.", "model.", "module._orig_mod.", "model.encoder."]
)
def test_prefixes_of_names(tmp_path, model, prefix):
    save_file(prefixed(model.state_dict(), prefix), tmp_path / "file.safetensors")
    notes = notes_of(tmp_path / "file.safetensors", model.state_dict())
    assert notes.splitlines() == [f"took '{part}.' off the names" for part in prefix[:-1].split(".")]


def test_a_file_of_lightning(tmp_path, model):
    tensors = {**prefixed(model.state_dict(), "model."), "criterion.center": torch.zeros(3)}
    contents = {"state_dict": tensors, "pytorch-lightning_version": "2.5.0", "epoch": 1, "callbacks": {}, "loops": {}}
    torch.save(contents, tmp_path / "last.ckpt")
    notes = notes_of(tmp_path / "last.ckpt", model.state_dict())
    assert notes.splitlines() == [
        "took the entry 'state_dict' of the file, and left out pytorch-lightning_version, epoch, callbacks and 1 more",
        "took 'model.' off the names, and left out criterion.center",
    ]


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_both_networks_in_one_state_dict(tmp_path, model, which):
    student = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    tensors = {
        **prefixed(model.state_dict(), "teacher."),
        **prefixed(student, "student._orig_mod."),
        "step": torch.ones(1),
    }
    torch.save({"model": tensors, "iteration": 5}, tmp_path / "run.pth")
    expected = model.state_dict() if which == "teacher" else student
    notes = notes_of(tmp_path / "run.pth", expected, which)
    assert "took the tensors of teacher and student, and left out step" in notes
    assert "took '_orig_mod.' off the names" in notes


def test_a_run_of_the_original_that_was_compiled_and_distributed(tmp_path, model):
    networks = {name: prefixed(model.state_dict(), "module._orig_mod.") for name in ("teacher", "student")}
    torch.save({**networks, "epoch": 2, "args": argparse.Namespace(lr=0.1)}, tmp_path / "run.pth")
    notes = notes_of(tmp_path / "run.pth", model.state_dict(), "student")
    assert notes.splitlines() == [
        "took 'module.' off the names",
        "took '_orig_mod.' off the names",
        "left out: teacher",
    ]


def test_nothing_is_said_of_what_is_not_wrapped(tmp_path, model):
    backbone = {n.removeprefix("backbone."): t for n, t in model.state_dict().items() if n.startswith("backbone.")}
    torch.save(backbone, tmp_path / "bare.pth")
    notes = notes_of(tmp_path / "bare.pth", prefixed(backbone, "backbone."))
    assert "took" not in notes


@pytest.mark.parametrize(
    "path", [pathlib.Path("/data/run"), pathlib.PurePosixPath("run"), pathlib.PureWindowsPath("C:/run")]
)
def test_paths_in_arguments_are_data(tmp_path, model, path):
    torch.save({"teacher": model.state_dict(), "args": argparse.Namespace(output_dir=path)}, tmp_path / "run.pth")
    args = to_dino(str(tmp_path / "run.pth"), num_heads=2).checkpoint.contents["args"]
    assert str(args.output_dir) == str(path)
    assert isinstance(args.output_dir, pathlib.PurePath)
    assert not isinstance(args.output_dir, pathlib.Path)


class Built:
    """What a pickle looks like that makes a class of another module."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def test_no_other_class_of_pathlib_is_made(tmp_path):
    torch.save({"args": Built(pathlib.Path, "x"), "teacher": {}}, tmp_path / "path.pth")
    with pytest.raises(ValueError, match="loading it would call pathlib"):
        read_checkpoint(str(tmp_path / "path.pth"))
    torch.save({"args": Built(pathlib.Path.unlink, pathlib.Path("x"))}, tmp_path / "method.pth")
    with pytest.raises(ValueError, match="is refused"):
        read_checkpoint(str(tmp_path / "method.pth"))


def sharded_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files of runs whose weights are in parts: by their names, by their classes, by their tensors, and folders."""
    files = [folder / "model_0000999.rank_0.pth", folder / "other.pth", folder / "flat.pth", folder / "1000"]
    torch.save({"model": {}}, files[0])
    torch.save({"model": {"teacher.x": Built(torch.distributed.init_process_group, "gloo")}}, files[1])
    torch.save({"model": {"teacher.backbone.blocks.0._flat_param": torch.zeros(4)}, "iteration": 3}, files[2])
    files[3].mkdir()
    (files[3] / "__0_0.distcp").write_bytes(b"")
    (files[3] / ".metadata").write_bytes(b"")
    return [*files, files[3] / "__0_0.distcp", folder]


def test_a_checkpoint_in_parts_is_refused_with_what_to_do(tmp_path):
    for file in sharded_files(tmp_path):
        with pytest.raises(ValueError, match=r"is a run's state in parts.*teacher_checkpoint\.pth"):
            to_dino(str(file))
