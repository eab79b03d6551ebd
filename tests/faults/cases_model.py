"""Configurations, image transforms, indices of shards and weights that are wrong; conversions of them."""

import io
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from faulty_input import Case, damaged, spoilt_json
from safetensors.torch import load_file, save


EXTRACT = ["extract", "--images", "images", "--output", "out", "--num-workers", "0", "--model"]
EVERY = 4  # of the wrong values of each key, which are no multiple: so each key gets others
OF_RESNETS = ("depths", "hidden_size", "num_hidden_layers", "resnet_stem", "out_features")
# values of a configuration that are wrong in a way of their own
WRONG_VALUES = [
    ("num_hidden_layers", 100_000),
    ("head_num_layers", 10**6),
    ("image_size", 2**40),
    ("hidden_size", 2**40),
    ("projection_dim", 10**15),
    ("mlp_ratio", math.nan),
    ("mlp_ratio", 1e-9),
    ("num_labels", 10**12),
    ("num_labels", "a"),
    ("num_labels", None),
    ("id2label", ["a", "b"]),
    ("id2label", {"a": "b"}),
    ("id2label", {"0": 1}),
    ("label2id", "a"),
    ("dtype", "float33"),
    ("dtype", "fields"),
    ("torch_dtype", ["float32"]),
    ("stage_names", ["stem"]),
    ("resnet_width", 3),
    ("to_dict", 1),
    ("__class__", 3),
    ("__dict__", {}),
    ("sub_configs", 3),
    ("base_model_tp_plan", 3),
    ("per_layer_config", {"0": 3}),
    ("attn_implementation", "kernels-community/flash-attn"),
    ("_attn_implementation", "kernels-community/flash-attn"),
    ("_attn_implementation_internal", "kernels-community/flash-attn"),
    ("quantization_config", {"quant_method": "mxfp4"}),
    ("quantization_config", "x"),
    ("auto_map", {"AutoConfig": "evil--code.Config"}),
    ("architectures", [3]),
    ("output_attentions", "x"),
    ("model_type", "vit"),
    ("model_type", "gpt2"),
    ("architecture", 3),
]
TEXTS = ["", "null", "[]", "3", '"a"', "{", "[" * 100_000, '{"a":' * 5_000, "\x00"]
DISAGREEING = [
    *[("hidden_size", 64), ("num_channels", 1), ("patch_size", 4), ("image_size", 64), ("mlp_ratio", 2)],
    *[("num_hidden_layers", 4), ("qkv_bias", False), ("projection_dim", 10), ("head_num_layers", 2)],
    *[("head_use_bn", True), ("head_type", "simple")],
]
TRANSFORMS = [
    *[("image_std", [0.2, 0.0, 0.2]), ("image_std", [math.nan] * 3), ("image_mean", [math.inf] * 3)],
    *[("image_mean", [0.5]), ("image_mean", [10**400] * 3), ("rescale_factor", math.nan), ("resample", 17)],
    *[("size", {"shortest_edge": 10**9}), ("crop_size", {"shortest_edge": 3}), ("size", {"a": 3})],
    *[("do_pad", True), ("to_dict", 1), ("image_processor_type", "os.system"), ("auto_map", {"A": "b.C"})],
]
PROCESSORS = ("ViTImageProcessor", "DeiTImageProcessorFast", "CLIPImageProcessor", "ConvNextImageProcessor", "X")


def cases(healthy: Path) -> Iterator[Case]:
    yield from configurations(healthy)
    yield from image_transforms(healthy)
    yield from indices(healthy)
    yield from weights(healthy)


def configurations(healthy: Path) -> Iterator[Case]:
    for family in ("vit", "resnet"):
        file = healthy / family / "config.json"
        content, own = json.loads(file.read_text()), f"{family}/config.json"
        for wrong, text in islice(spoilt_json(file), None, None, EVERY):
            if family == "vit" or wrong.removeprefix("no ").startswith(OF_RESNETS):
                yield Case(f"{own}: {wrong}", ["info", family], {own: text})
        for key, value in WRONG_VALUES if family == "vit" else []:
            for arguments in (["info", family], ["convert", family, "out"], [*EXTRACT, family]):
                text = json.dumps({**content, key: value})
                yield Case(f"{own}: {key}={value!r:.30} {arguments[0]}", arguments, {own: text})
        for text in TEXTS:
            for arguments in (["info", family], ["convert", family, "out"]):
                yield Case(f"{own}: {text:.10} {arguments[0]}", arguments, {own: text}, code=2)
    content = json.loads((healthy / "vit" / "config.json").read_text())
    for key, value in DISAGREEING:
        text = json.dumps({**content, "out_features": None, "out_indices": None, key: value})
        for arguments in ([*EXTRACT, "vit"], ["convert", "vit", "out"]):
            files = {"vit/config.json": text}
            yield Case(f"disagree: {key}={value!r} {arguments[0]}", arguments, files, 2, f"configuration has {key}=")


def image_transforms(healthy: Path) -> Iterator[Case]:
    file = healthy / "vit" / "preprocessor_config.json"
    content = json.loads(file.read_text())
    for wrong, text in islice(spoilt_json(file), None, None, EVERY):
        yield Case(f"preprocessor_config.json: {wrong}", [*EXTRACT, "vit"], {"vit/preprocessor_config.json": text})
    texts = {str(value)[:30]: json.dumps({**content, key: value}) for key, value in TRANSFORMS}
    texts |= {kind: json.dumps({"image_processor_type": kind, "size": 32}) for kind in PROCESSORS}
    texts |= {text[:10]: text for text in TEXTS}
    for wrong, text in texts.items():
        for arguments in ([*EXTRACT, "vit"], ["convert", "vit", "out", "--to", "timm"]):
            files = {"vit/preprocessor_config.json": text}
            yield Case(f"preprocessor_config.json: {wrong} {arguments[0]}", arguments, files)


def indices(healthy: Path) -> Iterator[Case]:
    """Weights in shards: here one, and an index that is wrong."""
    content = (healthy / "vit" / "model.safetensors").read_bytes()
    names = list(load_file(healthy / "vit" / "model.safetensors"))
    weight_maps = [None, [], 3, {}, {"a": 1}, {"a": None}, dict.fromkeys(names, "gone.safetensors")]
    weight_maps += [dict.fromkeys(names, name) for name in ("../vit/part.safetensors", "/etc/passwd", "", "\x1b[31m")]
    weight_maps += [{**dict.fromkeys(names, "part.safetensors"), "more": "gone.safetensors"}, {"\x1b[31m": "part"}]
    texts = [json.dumps({"metadata": {}, "weight_map": weight_map}) for weight_map in weight_maps]
    for text in [*texts, *TEXTS]:
        files = {"vit/model.safetensors": None, "vit/part.safetensors": content}
        files["vit/model.safetensors.index.json"] = text
        for arguments in ([*EXTRACT, "vit"], ["convert", "vit", "out"]):
            yield Case(f"index: {text[:60]} {arguments[0]}", arguments, files, code=2)


def weights(healthy: Path) -> Iterator[Case]:
    for wrong, content in damaged(healthy / "vit" / "model.safetensors", 20):
        yield Case(f"model.safetensors: {wrong}", [*EXTRACT, "vit"], {"vit/model.safetensors": content})
    state = load_file(healthy / "vit" / "model.safetensors")
    for value in (math.nan, math.inf, -math.inf):
        spoilt = {**state, "backbone.norm.weight": torch.full((32,), value)}
        files = {"vit/model.safetensors": save(spoilt, {"format": "pt"}), "x.pth": pickled(spoilt)}
        commands = [[*EXTRACT, "vit"], ["convert", "vit", "out", "--verify"], ["attention", "--model", "vit"]]
        commands[2] += ["--image", "images/a/0.png", "--output", "out"]
        for arguments in (*commands, ["convert", "x.pth", "out", "--num-heads", "4"]):
            yield Case(f"weights of {value} {arguments[:2]}", arguments, files, 2, "infinite or not numbers")
    for name in ("\x1b[31mred", "a\u202eb", "\x9b2J", "two\nlines", "x" * 5_000, ""):
        files = {"x.pth": pickled({**state, name: torch.zeros(1)})}
        arguments = ["convert", "x.pth", "out", "--num-heads", "4"]
        yield Case(f"a tensor called {name!r:.20}", arguments, files, 2, "also has")
    for wrong, content in odd_checkpoints(state).items():
        for options in ([], ["--from", "timm"], ["--which", "student"], ["--to", "transformers"]):
            arguments = ["convert", "x.pth", "out", "--num-heads", "4", *options]
            yield Case(f"{wrong} {options}", arguments, {"x.pth": pickled(content)}, 2)
    for name in ("x.pth", "vit/model.safetensors"):
        yield Case(f"{name} as a model", [*EXTRACT, name], {"x.pth": pickled(state)}, 2, f"dino convert {name} FOLDER")


def odd_checkpoints(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """Returns what a file may hold that is no model."""
    bare = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    return {
        "a list": [1, 2],
        "nothing": {},
        "no tensors": {"a": 1},
        "an empty teacher": {"teacher": {}, "student": {}},
        "a teacher that is a tensor": {"teacher": torch.zeros(2), "student": torch.zeros(2)},
        "names that are numbers": {1: torch.zeros(2), 2: torch.zeros(3)},
        "tensors of no dimension": {name: torch.tensor(1.0) for name in bare},
        "tensors of no numbers": {name: torch.zeros(0) for name in bare},
        "integers": {name: torch.zeros(x.shape, dtype=torch.int64) for name, x in bare.items()},
        "complex numbers": {name: x.to(torch.complex64) for name, x in bare.items()},
        "no blocks": {name: x for name, x in bare.items() if not name.startswith("blocks")},
        "positions of no square": {**bare, "pos_embed": torch.zeros(1, 13, 32)},
        "positions of no image": {**bare, "pos_embed": torch.zeros(1, 0, 32)},
    }


def pickled(contents: object) -> bytes:
    """Returns what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()
