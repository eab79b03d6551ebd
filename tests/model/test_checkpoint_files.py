"""Files of weights that cannot be read, and those that others should be able to read."""

import builtins
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.options import ConvertOptions
from modeling_dino import DinoBackbone, DinoConfig, DinoForImageClassification, DinoForPreTraining, DinoModel
from modeling_dino.hub.loading import load_model


CLASSES = [DinoModel, DinoBackbone, DinoForImageClassification, DinoForPreTraining, DinoConfig]


@pytest.fixture
def locked(monkeypatch):
    """Makes a file look like another user's, which also root cannot read then."""

    def lock(path: Path):
        def refuse(file, *arguments, **keywords):
            if str(file) == str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return opened(file, *arguments, **keywords)

        opened = builtins.open
        monkeypatch.setattr(builtins, "open", refuse)

    return lock


@pytest.mark.parametrize("model_class", CLASSES[:-1])
def test_weights_that_may_not_be_read(tmp_path, locked, model_class):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    locked(tmp_path / "model.safetensors")
    with pytest.raises(PermissionError, match=r"Permission denied: .*model.safetensors"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["model/model.safetensors", "file.pth", "model"])
def test_a_conversion_of_what_may_not_be_read(tmp_path, locked, name):
    model = DinoModel(tiny_config())
    model.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "file.pth")
    locked(tmp_path / name if name != "model" else tmp_path / "model" / "model.safetensors")
    with pytest.raises(PermissionError, match="Permission denied"):
        convert_checkpoint(ConvertOptions(source=str(tmp_path / name), output=str(tmp_path / "out"), num_heads=4))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_saved_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        DinoModel(tiny_config(num_attention_heads=2)).save_pretrained(tmp_path / "model", max_shard_size="20KB")
        for to in ("dino", "transformers", "timm"):
            convert_checkpoint(ConvertOptions(source=str(tmp_path / "model"), output=str(tmp_path / to), to=to))
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


@pytest.mark.parametrize("load", [*(model_class.from_pretrained for model_class in CLASSES), load_model])
@pytest.mark.parametrize("name", ["x.pth", "folder/x.safetensors"])
def test_a_file_of_weights_is_to_be_converted(tmp_path, monkeypatch, load, name):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # before the file is there, and after
        with pytest.raises(ValueError, match=re.escape(f"{name} is a file, and a model is a folder")) as caught:
            load(name)
        assert f"run `dino convert {name} FOLDER`" in str(caught.value)
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        "null",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "gone.safetensors"}}',
        "\xff",
    ],
    ids=lambda text: text[:40],
)
def test_an_index_that_is_damaged(tmp_path, text):
    DinoModel(tiny_config()).save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
    for load in (DinoModel.from_pretrained, DinoBackbone.from_pretrained):
        with pytest.raises((ValueError, OSError)) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
        assert "safetensors" in str(caught.value)
