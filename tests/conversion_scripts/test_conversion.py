import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from golden_data import GOLDEN_DIR, assert_close, read_golden
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config
from transformers import ViTConfig, ViTModel

from conversion_scripts import original, transformers_vit
from conversion_scripts.checkpoint import rename
from conversion_scripts.convert import convert_checkpoint as run_conversion
from conversion_scripts.options import ConvertOptions
from conversion_scripts.recognition import FORMATS, format_for, format_of, recognise, to_dino
from conversion_scripts.sizes import infer_config
from modeling_dino import DinoConfig, DinoModel, cli
from modeling_dino.configuration_dino import RESNET_DEPTHS


SIZES_IN_PIXELS = [(224, 224), (256, 320), (96, 64), (100, 224)]
OF_TIMM = ["vit_tiny_patch16_224", "vit_small_patch8_224", "resnet18", "resnet50"]
OF_TRANSFORMERS = ["vit in files", "vit in modules"]  # older and newer names
OF_TORCHVISION = ["resnet18", "resnet50"]
SMALL = [(96, 64)]  # suffices where the same weights come back another way


@pytest.fixture
def dino(monkeypatch, capsys):
    """Runs `dino convert`; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino", "convert", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return stop.value.code, output.out, output.err

    return run


def convert(source: str, output: str, **options) -> tuple[str, ...]:
    """Converts a checkpoint; returns what is said about it, a line each."""
    return run_conversion(ConvertOptions(source=source, output=output, **options)).lines


# Golden data: what the original and the lesson computed


@pytest.mark.parametrize("which", ["teacher", "student"])
@torch.no_grad()
def test_golden_full_checkpoint(dino, tmp_path, which):
    metadata, tensors = read_golden("checkpoint_outputs")
    heads = metadata["vit"]["num_attention_heads"]
    code, out, _ = dino(GOLDEN_DIR / "full_checkpoint.pth", tmp_path / "out", "--which", which, "--num-heads", heads)
    assert code == 0
    assert "as original" in out
    assert "args have arch=" in out  # the file names a larger model than it holds
    assert "left out: " in out
    output = DinoModel.from_pretrained(tmp_path / "out").eval()(tensors["input"])
    assert_close(output.pooler_output, tensors[f"{which}_features"])
    assert_close(output.projection, tensors[f"{which}_output"])
    contents = torch.load(GOLDEN_DIR / "full_checkpoint.pth", weights_only=False)
    center = load_file(tmp_path / "out" / "center.safetensors")["center"]
    assert torch.equal(center, contents["dino_loss"]["center"])
    training = json.loads((tmp_path / "out" / "training.json").read_text())
    assert training["epoch"] == contents["epoch"]
    assert training["args"]["arch"] == contents["args"].arch


@torch.no_grad()
def test_golden_backbone_checkpoint(dino, tmp_path):
    metadata, tensors = read_golden("checkpoint_outputs")
    heads = metadata["vit"]["num_attention_heads"]
    assert dino(GOLDEN_DIR / "backbone_checkpoint.pth", tmp_path / "out", "--num-heads", heads)[0] == 0
    output = DinoModel.from_pretrained(tmp_path / "out").eval()(tensors["input"])
    assert_close(output.pooler_output, tensors["teacher_features"])
    assert output.projection is None


@torch.no_grad()
def test_golden_lesson_checkpoint(dino, tmp_path):
    metadata, tensors = read_golden("lesson_outputs")
    heads = metadata["vit"]["num_attention_heads"]
    code, out, _ = dino(GOLDEN_DIR / "lesson_checkpoint.pth", tmp_path / "out", "--num-heads", heads)
    assert code == 0
    assert "as lesson" in out
    model = DinoModel.from_pretrained(tmp_path / "out").eval()
    output = model(tensors["input"])
    assert_close(output.pooler_output, tensors["features"])
    assert_close(output.projection, tensors["output"])
    assert_close(model.get_attention_maps(tensors["input"])[0], tensors["last_attention"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "which", "source"),
    [
        ("full", "teacher", "full_checkpoint.pth (the original's, its teacher)"),
        ("full", "student", "full_checkpoint.pth (the original's, its student)"),
        ("backbone", "teacher", "backbone_checkpoint.pth (the original's)"),
        ("lesson", "teacher", "lesson_checkpoint.pth (the lesson's)"),
    ],
)
def test_the_configuration_remembers_where_weights_came_from(tmp_path, name, which, source):
    convert(str(GOLDEN_DIR / f"{name}_checkpoint.pth"), str(tmp_path / "once"), which=which, num_heads=4)
    convert(str(tmp_path / "once"), str(tmp_path / "twice"))
    assert DinoModel.from_pretrained(tmp_path / "twice").config.weights_source == source


# Round trips, bit for bit


def distinct_state(config: DinoConfig) -> dict[str, torch.Tensor]:
    """Tensors of the right shapes, each of one value of its own, which take no memory."""
    with torch.device("meta"):
        state = DinoModel(config).state_dict()
    return {
        name: torch.tensor(i + 0.5).to(tensor.dtype).expand(tensor.shape)
        for i, (name, tensor) in enumerate(state.items())
    }


def assert_same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def round_trip(config: DinoConfig, state: dict[str, torch.Tensor], name: str) -> DinoConfig:
    """Ours to a format and back and there again, without files; returns the configuration that comes back."""
    checkpoint = format_for(config, name).from_dino(config, state)
    assert recognise(checkpoint) == name
    back_config, back = format_of(checkpoint, name).to_dino(checkpoint, num_heads=config.num_attention_heads)
    kept = {key: t for key, t in state.items() if key.startswith("backbone.") or back_config.head_type is not None}
    assert_same(back, kept)
    again = format_for(back_config, name).from_dino(back_config, back).contents
    if name == "original" and "teacher" in again:
        assert_same(again["teacher"], checkpoint.contents["teacher"])
    elif name == "lesson":
        assert_same(again["model_state_dict"], checkpoint.contents["model_state_dict"])
    else:
        assert_same(again, checkpoint.contents)
    return back_config


def sizes_of(config: DinoConfig) -> dict:
    names = ["backbone", "hidden_size", "num_hidden_layers", "num_channels", "head_type", "head_num_layers"]
    names += ["head_use_bn", "norm_last_layer", "head_weight_norm", "projection_dim"]
    names += (
        ["image_size", "patch_size", "num_attention_heads"]
        if not hasattr(config, "depths")
        else ["depths", "uses_cifar_stem"]
    )
    return {name: getattr(config, name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "patch_size"), [("vit_tiny", 16), ("vit_small", 8), ("vit_base", 14), ("vit_large", 16)]
)
@pytest.mark.parametrize("name", ["original", "lesson", "timm", "transformers"])
def test_round_trip_of_vits(name, backbone, patch_size):
    config = DinoConfig(backbone=backbone, patch_size=patch_size, image_size=14 * patch_size, head_type=None)
    assert sizes_of(round_trip(config, distinct_state(config), name)) == sizes_of(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "stem"), [*((name, "imagenet") for name in sorted(RESNET_DEPTHS)), ("resnet18", "cifar")]
)
@pytest.mark.parametrize("name", ["lesson", "timm", "torchvision"])  # the original's bare one is torchvision's
def test_round_trip_of_resnets(name, backbone, stem):
    config = DinoConfig(backbone=backbone, resnet_stem=stem, head_type=None)
    state = distinct_state(config)
    if name == "timm" and stem == "cifar":
        with pytest.raises(ValueError, match="no stem for small images"):
            round_trip(config, state, name)
        return
    assert sizes_of(round_trip(config, state, name)) == sizes_of(config)


HEADS = [
    {},
    {"head_num_layers": 1},
    {"head_num_layers": 2, "head_hidden_dim": 40},
    {"head_use_bn": True},
    {"norm_last_layer": False},
    {"head_weight_norm": False},
    {"head_type": "simple"},
    {"head_type": "simple", "head_num_layers": 1},
]


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("name", ["original", "lesson"])
def test_round_trip_of_heads(name, family, head):
    config = tiny_config(family, **head)
    state = distinct_state(config)
    if config.norm_last_layer and "head.last_layer.weight_g" in state:
        state["head.last_layer.weight_g"] = torch.ones_like(state["head.last_layer.weight_g"])
    if name == "original" and config.head_type == "simple":
        assert "left out: the simple projection head" in format_for(config, name).from_dino(config, state).notes[0]
        return
    back = round_trip(config, state, name)
    names = [field for field in sizes_of(config) if "head_" in field or field in ("norm_last_layer", "projection_dim")]
    assert {field: getattr(back, field) for field in names} == {field: getattr(config, field) for field in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["original", "lesson", "timm", "transformers"])
def test_round_trip_through_files(tmp_path, name, dtype):
    model = DinoModel(tiny_config(num_attention_heads=2, norm_last_layer=False)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    model.save_pretrained(tmp_path / "dino")
    lines = convert(str(tmp_path / "dino"), str(tmp_path / "there"), to=name)
    assert any("projection head" in line for line in lines) == (name in ("timm", "transformers"))
    convert(str(tmp_path / "there"), str(tmp_path / "back"), num_heads=2)
    convert(str(tmp_path / "back"), str(tmp_path / "again"), to=name)
    back = DinoModel.from_pretrained(tmp_path / "back")
    expected = model.state_dict()
    if back.head is None:
        expected = {key: tensor for key, tensor in expected.items() if key.startswith("backbone.")}
    assert_same(back.state_dict(), expected)
    there, again = (to_dino(str(tmp_path / place), num_heads=2) for place in ("there", "again"))
    assert_same(again.state_dict, there.state_dict)
    assert there.dtype == dtype


def test_names_of_newer_weight_norm_and_of_distributed_training(tmp_path):
    model = DinoModel(tiny_config(num_attention_heads=2))
    newer = {
        "module."
        + key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for key, tensor in model.state_dict().items()
    }
    torch.save({"student": newer}, tmp_path / "file.pth")
    conversion = to_dino(str(tmp_path / "file.pth"), which="student", num_heads=2)
    assert_same(conversion.state_dict, model.state_dict())
    with pytest.raises(ValueError, match="has no teacher, only a student"):
        to_dino(str(tmp_path / "file.pth"), num_heads=2)


# Peers: models of other libraries, converted, and converted back


def check_against(reference, model: DinoModel, sizes=SIZES_IN_PIXELS):
    """Features at native, larger, smaller and non-square sizes."""
    with torch.no_grad():
        for height, width in sizes:
            images = torch.randn(1, 3, height, width)
            assert_close(model(images).pooler_output, reference(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TIMM)
def test_timm(tmp_path, name):
    theirs = timm.create_model(name, num_classes=10).eval()
    timm.models.save_for_hf(theirs, tmp_path / "timm")
    model = DinoModel.from_pretrained(tmp_path / "timm").eval()
    dynamic = {"dynamic_img_size": True} if name.startswith("vit") else {}
    headless = timm.create_model(name, num_classes=0, **dynamic).eval()
    headless.load_state_dict(theirs.state_dict(), strict=False)
    sizes = [size for size in SIZES_IN_PIXELS if size[0] % 32 == 0]  # timm takes no others
    check_against(headless, model, sizes)
    assert not dynamic or model.config.position_interpolation == "antialias"
    model.save_pretrained(tmp_path / "dino")
    lines = convert(str(tmp_path / "dino"), str(tmp_path / "back"), to="timm", verify=True)
    assert "verified" in lines[-1]
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    weights = str(tmp_path / "back" / "model.safetensors")
    again = timm.create_model(settings["architecture"], checkpoint_path=weights, **settings["model_args"], **dynamic)
    check_against(again.eval(), model, SMALL)
    by_name = timm.create_model(name, checkpoint_path=weights, num_classes=0, **dynamic)
    check_against(by_name.eval(), model, SMALL)
    local = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True, **dynamic)
    check_against(local.eval(), model, SMALL)


@pytest.mark.parametrize("names", OF_TRANSFORMERS)
def test_transformers(tmp_path, names):
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    theirs = ViTModel(ViTConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "vit")
    if names == "vit in modules":
        save_file(theirs.state_dict(), tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})

    def reference(model):
        return lambda images: model(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    model = DinoModel.from_pretrained(tmp_path / "vit").eval()
    assert (model.config.position_interpolation, model.config.layer_norm_eps) == ("size", 1e-12)
    check_against(reference(theirs), model)
    model.save_pretrained(tmp_path / "dino")
    lines = convert(str(tmp_path / "dino"), str(tmp_path / "back"), to="transformers")
    assert not any("differ" in line for line in lines)
    again, report = ViTModel.from_pretrained(tmp_path / "back", add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    check_against(reference(again.eval()), model)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_torchvision(tmp_path, name):
    theirs = torchvision.models.get_model(name)
    theirs.train()(torch.randn(4, 3, 64, 64))  # statistics other than 0 and 1
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    lines = convert(str(tmp_path / "theirs.pth"), str(tmp_path / "dino"), verify=True)
    assert "left out: fc.weight, fc.bias" in lines
    assert float(lines[-1].split()[-4]) < 1e-5
    model = DinoModel.from_pretrained(tmp_path / "dino").eval()
    theirs.fc = torch.nn.Identity()
    check_against(theirs.eval(), model)
    convert(str(tmp_path / "dino"), str(tmp_path / "back.pth"), to="torchvision")
    again = torchvision.models.get_model(name)
    again.fc = torch.nn.Identity()
    again.load_state_dict(torch.load(tmp_path / "back.pth"), strict=True)
    check_against(again.eval(), model, SMALL)


def test_the_original_loads_what_is_written(tmp_path):
    """As its `load_pretrained_weights` and its training script do: the backbone by itself, and the whole teacher."""
    model = DinoModel(tiny_config(num_attention_heads=2))
    model.save_pretrained(tmp_path / "dino")
    convert(str(tmp_path / "dino"), str(tmp_path / "original.pth"), to="original")
    state_dict = torch.load(tmp_path / "original.pth", weights_only=True)["teacher"]
    backbone = {k.removeprefix("backbone."): v for k, v in state_dict.items() if k.startswith("backbone.")}
    reference = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0
    )
    reference.load_state_dict(backbone, strict=True)  # timm's names are the original's
    assert {k for k in state_dict if k.startswith("head.")} == {f"head.{k}" for k in model.head.state_dict()}


def test_loading_says_what_it_recognised_and_takes_overrides(tmp_path, caplog):
    ViTModel(ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1)).to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    model, report = DinoModel.from_pretrained(
        tmp_path, head_type="dino", projection_dim=16, head_hidden_dim=8, output_loading_info=True
    )
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("modeling_dino")]
    assert "as transformers: vit_tiny, 64 wide, patch 16, no head; left out: pooler.dense" in line
    assert model.dtype == torch.bfloat16
    assert model.head.last_layer.weight_v.shape[0] == 16
    assert all(key.startswith("head.") for key in report["missing_keys"])
    assert DinoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


# The checks notice what is wrong


def test_swapped_query_and_key_are_noticed(tmp_path, monkeypatch):
    theirs = ViTModel(ViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "vit")
    right = convert(str(tmp_path / "vit"), str(tmp_path / "right"), verify=True)
    to_our_names = transformers_vit.TransformersViT.to_our_names

    def swapped(self, state: dict) -> dict:
        other = {".query.": ".key.", ".key.": ".query."}
        pattern = re.compile("|".join(map(re.escape, other)))
        names = {name: pattern.sub(lambda match: other[match[0]], name) for name in state}
        assert list(names) != list(names.values())
        return to_our_names(self, {names[name]: tensor for name, tensor in state.items()})

    monkeypatch.setattr(transformers_vit.TransformersViT, "to_our_names", swapped)
    assert float(right[-1].split()[-4]) < 1e-5
    with pytest.raises(ValueError, match=r"wrong is written, but is wrong: .*, which is more than 1e-04"):
        convert(str(tmp_path / "vit"), str(tmp_path / "wrong"), verify=True)


@pytest.mark.parametrize("row", range(len(transformers_vit.KEYS)))
def test_a_row_missing_from_the_table_is_noticed(tmp_path, monkeypatch, row):
    ViTModel(ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(tmp_path / "vit")
    keys = [pair for i, pair in enumerate(transformers_vit.KEYS) if i != row]
    monkeypatch.setattr(transformers_vit.TransformersViT, "keys", keys)
    with pytest.raises(ValueError, match=r"neither a ViT|a ViT without|not a whole"):
        to_dino(str(tmp_path / "vit"))


@pytest.mark.parametrize(
    "checkpoint_format", [one for formats in FORMATS.values() for one in formats], ids=lambda one: type(one).__name__
)
def test_tables_are_one_to_one(checkpoint_format):
    table = checkpoint_format.keys
    ours = [row[0] for row in table]
    assert len(set(ours)) == len(ours)
    names = [left.format(i=3, j=1, p="weight") for left in ours]
    there = rename(dict.fromkeys(names), table)
    assert not set(there) & set(names)
    assert list(rename(there, table, inverse=True)) == names


# Files that are not to be trusted, or not whole


class Runs:
    """What a malicious pickle looks like: unpickling it calls something."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture(scope="module")
def hostile_files(tmp_path_factory) -> list[Path]:
    """At least thirty files and folders that must not convert; one that is unpickled makes a `marker` beside them."""
    folder = tmp_path_factory.mktemp("hostile")
    marker, files = folder.parent / "marker", []

    def file(name: str) -> Path:
        files.append(folder / name)
        return folder / name

    good = DinoModel(tiny_config(num_attention_heads=2)).state_dict()
    touch = f"open({str(marker)!r}, 'w').close()"
    calls = [
        (os.system, f"touch {marker}"),
        (exec, touch),
        (eval, touch),
        (open, str(marker), "w"),
        (os.mkdir, str(marker)),
        (getattr, "text", "upper"),
        (__import__, "antigravity"),
    ]
    for i, (function, *arguments) in enumerate(calls):
        torch.save({"teacher": good, "args": Runs(function, *arguments)}, file(f"malicious-{i}.pth"))
    torch.save({**good, "extra": Runs(os.system, f"touch {marker}")}, file("malicious-state.pth"))
    torch.save(good, file("malicious-old.pth"), _use_new_zipfile_serialization=False)
    files[-1].write_bytes(pickle.dumps(Runs(os.system, f"touch {marker}")))
    file("malicious-plain.bin").write_bytes(pickle.dumps({"teacher": Runs(exec, touch)}))
    torch.save({"teacher": good, "args": Namespace(pattern=re.compile("x"))}, file("unknown-class.pth"))
    torch.save({"teacher": good}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "whole.pth").unlink()
    for part in (0, 1, 4, 100, 1000, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        file(f"truncated-{part}.pth").write_bytes(whole[:part])
    save_file(good, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    (folder / "whole.safetensors").unlink()
    for part in (0, 7, 50, len(whole) // 2, len(whole) - 1):
        file(f"truncated-{part}.safetensors").write_bytes(whole[:part])
    file("text.pth").write_text("not a checkpoint\n" * 100)
    file("zip.pth").touch()
    with zipfile.ZipFile(files[-1], "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    torch.save([1, 2], file("list.pth"))
    torch.save({}, file("empty.pth"))
    torch.save({"teacher": {}}, file("empty-teacher.pth"))
    torch.save({"weight": torch.zeros(3)}, file("other.pth"))
    torch.save({"a": 1, "b": "text"}, file("no-tensors.pth"))
    torch.save({k: v for k, v in good.items() if "norm1" not in k}, file("missing-keys.pth"))
    torch.save({**good, "backbone.blocks.0.extra": torch.zeros(1)}, file("extra-keys.pth"))
    torch.save({**good, "backbone.norm.weight": torch.zeros(5)}, file("wrong-shape.pth"))
    torch.save({**good, "backbone.pos_embed": torch.zeros(1, 12, 32)}, file("positions.pth"))
    torch.save({k: v for k, v in good.items() if "cls_token" not in k}, file("no-cls.pth"))
    torch.save(torchvision.models.vgg11().features[:3].state_dict(), file("vgg.pth"))
    resnet = torchvision.models.resnet18().state_dict()
    torch.save({k: v for k, v in resnet.items() if "layer3" not in k}, file("resnet-without-a-stage.pth"))
    torch.save({k: v for k, v in resnet.items() if "bn2" not in k}, file("resnet-without-norms.pth"))
    file("folder").mkdir()
    file("folder-of-another").mkdir()
    (folder / "folder-of-another" / "config.json").write_text('{"model_type": "gpt2"}')
    save_file({"wte": torch.zeros(2)}, folder / "folder-of-another" / "model.safetensors")
    file("folder-without-weights").mkdir()
    (folder / "folder-without-weights" / "config.json").write_text('{"model_type": "vit"}')
    file("folder-with-bad-json").mkdir()
    (folder / "folder-with-bad-json" / "config.json").write_text('{"model_type": "vit"')
    file("folder-with-another-activation").mkdir()
    (folder / "folder-with-another-activation" / "config.json").write_text(
        '{"model_type": "vit", "hidden_act": "relu"}'
    )
    save_file({"cls": torch.zeros(2)}, folder / "folder-with-another-activation" / "model.safetensors")
    files.append(folder / "nothing")
    return files


@pytest.mark.slow
def test_hostile_files_are_refused_in_one_line(dino, tmp_path, hostile_files):
    assert len(hostile_files) >= 30
    for file in hostile_files:
        code, out, err = dino(file, tmp_path / "out", "--num-heads", 2)
        assert code == 2, (file, out, err)
        assert out == ""
        assert len(err.strip().splitlines()) == 1, (file, err)
        assert err.startswith("dino: "), err
        assert not (file.parents[1] / "marker").exists(), file
        assert not list(tmp_path.iterdir()), file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("malicious-0.pth", "is refused, since loading it would call posix.system"),
        ("unknown-class.pth", "is refused, since loading it would call re._compile"),
        ("missing-keys.pth", "it lacks backbone.blocks.0.norm1.weight, backbone.blocks.0.norm1.bias, "),
        ("extra-keys.pth", "it also has backbone.blocks.0.extra"),
        ("wrong-shape.pth", "backbone.norm.weight is (5,), but must be (32,)"),
        ("positions.pth", "positions of 11 patches are not those of a square image"),
        ("other.pth", "is not a DINO of any known format; its first keys are weight"),
        ("folder-of-another", "is a model of type 'gpt2', not a DINO"),
        ("folder-with-another-activation", "hidden_act is 'relu', but DINO's ViTs have 'gelu'"),
        ("text.pth", "is not a checkpoint of PyTorch, or damaged"),
    ],
)
def test_the_line_says_what_is_wrong(dino, tmp_path, hostile_files, name, message):
    assert message in dino(hostile_files[0].parent / name, tmp_path / "out", "--num-heads", 2)[2]


def test_numbers_of_numpy_are_allowed_and_nothing_else_of_it(tmp_path):
    model = DinoModel(tiny_config(num_attention_heads=2, head_type=None))
    contents = {"teacher": model.state_dict(), "epoch": np.int64(3), "args": Namespace(lr=np.float64(0.1))}
    torch.save(contents, tmp_path / "file.pth")
    conversion = to_dino(str(tmp_path / "file.pth"), num_heads=2)
    assert original.training_state(conversion.checkpoint)["epoch"] == 3
    torch.save({**contents, "args": Namespace(data=np.zeros(3))}, tmp_path / "array.pth")
    with pytest.raises(ValueError, match=r"loading it would call numpy.*reconstruct"):
        to_dino(str(tmp_path / "array.pth"), num_heads=2)


@pytest.mark.parametrize(
    "rest",
    [
        {"args": {"arch": "vit_tiny", "lr": 0.1}},
        {"args": None, "dino_loss": None},
        {"args": 3, "dino_loss": torch.zeros(2), "epoch": torch.zeros(3)},
        {"args": Namespace(patch_size=torch.zeros(2), arch=["x"]), "dino_loss": {"center": "none"}},
    ],
)
def test_odd_things_beside_the_weights_do_no_harm(tmp_path, rest):
    model = DinoModel(tiny_config(num_attention_heads=2))
    torch.save({"teacher": model.state_dict(), **rest}, tmp_path / "file.pth")
    lines = convert(str(tmp_path / "file.pth"), str(tmp_path / "out"), num_heads=2)
    assert "carried along: training.json" in lines
    assert json.loads((tmp_path / "out" / "training.json").read_text())["args"] is not None


def test_what_cannot_be_told_is_asked_for(tmp_path):
    model = DinoModel(tiny_config(num_attention_heads=2))
    torch.save({"teacher": model.state_dict(), "args": Namespace(num_heads=2)}, tmp_path / "file.pth")
    assert to_dino(str(tmp_path / "file.pth")).config.num_attention_heads == 2
    state = OrderedDict(DinoModel(tiny_config(num_attention_heads=2)).state_dict())
    with pytest.raises(ValueError, match="the number of heads of a ViT 32 wide cannot be told: pass --num-heads"):
        infer_config(state)
    assert infer_config(distinct_state(DinoConfig(backbone="vit_base", head_type=None))).num_attention_heads == 12


def test_an_output_that_is_there_is_left_alone(dino, tmp_path):
    source = GOLDEN_DIR / "backbone_checkpoint.pth"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    code, _, err = dino(source, tmp_path / "out", "--num-heads", 1)
    assert code == 2
    assert "exists already: choose another place" in err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("to", ["dino", "original", "timm"])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, to):
    DinoModel(tiny_config(num_attention_heads=2)).save_pretrained(tmp_path / "dino")

    def disk_full(*arguments, **keywords):
        raise OSError("No space left on device")

    for name in ("conversion_scripts.checkpoint.torch.save", "conversion_scripts.checkpoint.save_file"):
        monkeypatch.setattr(name, disk_full)
    monkeypatch.setattr("modeling_dino.modeling_dino.save_image_transform", disk_full)
    with pytest.raises(OSError, match="No space left"):
        convert(str(tmp_path / "dino"), str(tmp_path / "out"), to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["dino"]


def test_what_is_compared_is_said(tmp_path):
    config = DinoConfig(backbone="vit_tiny", num_hidden_layers=1, image_size=32, head_type=None)
    DinoModel(config).save_pretrained(tmp_path / "dino")
    lines = convert(str(tmp_path / "dino"), str(tmp_path / "timm"), to="timm", verify=True)
    ours = f"by modeling-dino {version('modeling-dino')} from {tmp_path / 'dino'}"
    theirs = f"by timm {timm.__version__} from {tmp_path / 'timm'}"
    images = "the 192 features of 2 random images of 3 x 32 x 32"
    assert lines[-1].startswith(f"verified: {images}, {ours} and {theirs}, differ by ")
    assert float(lines[-1].split()[-4]) < 1e-5
    back = convert(str(tmp_path / "timm"), str(tmp_path / "transformers"), to="transformers", verify=True)
    assert back[-1].startswith(f"verified: {images}, {theirs} and by transformers ")


def test_what_no_library_knows_is_not_verified(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "dino")
    line = convert(str(tmp_path / "dino"), str(tmp_path / "original.pth"), to="original", verify=True, num_heads=4)[-1]
    assert line.startswith("read back (original and dino have no library to compare with): ")
    assert "verified" not in line
    assert line.endswith("differ by 0.0e+00 of the largest")


def test_without_the_library_nothing_is_verified_nor_written(tmp_path, monkeypatch):
    DinoModel(tiny_config()).save_pretrained(tmp_path / "dino")
    monkeypatch.setattr("conversion_scripts.convert.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match="timm is not installed, which --verify compares with: run `pip install timm`"
    ):
        convert(str(tmp_path / "dino"), str(tmp_path / "out"), to="timm", verify=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_verified_is_not_written(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"^a bare state dict does not name its timm model: verify from a folder$"):
        convert(str(tmp_path / "bare.pth"), str(tmp_path / "out"), verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "family", "message"),
    [
        ("torchvision", "vit", "the format of torchvision cannot hold a vit_tiny"),
        ("transformers", "resnet", "the format of transformers' ViT cannot hold a resnet50"),
        ("timm", "resnet", "timm has no resnet50 of depths [1, 2, 1, 1]"),
        ("onnx", "vit", "unknown format 'onnx': allowed are dino, lesson, original"),
    ],
)
def test_a_format_that_cannot_hold_the_model_is_refused(dino, tmp_path, to, family, message):
    DinoModel(tiny_config(family)).save_pretrained(tmp_path / "dino")
    code, _, err = dino(tmp_path / "dino", tmp_path / "out", "--to", to)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_package_of_formats_is_the_command(tmp_path):
    source = GOLDEN_DIR / "backbone_checkpoint.pth"
    command = [sys.executable, "-m", "conversion_scripts", source, tmp_path / "out", "--num-heads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert DinoModel.from_pretrained(tmp_path / "out").config.num_attention_heads == 1
