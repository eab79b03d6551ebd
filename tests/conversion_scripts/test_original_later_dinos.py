"""Checkpoints of the originals of DINOv2, DINOv3 and XCiT convert, and give what the originals computed."""

import pytest
import torch
from golden_data import GOLDEN_DIR, assert_close, read_golden, with_prefix
from later_dinos import config_of
from tiny_models import tiny_config

from conversion_scripts.checkpoint_format import PERIODS, computed_periods
from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.recognition import format_for, format_of, recognise, to_dino
from modeling_dino import DinoConfig, DinoModel


def converted(source, output, to: str = "dino", **options) -> str:
    return "\n".join(convert_checkpoint(source=source, output=output, to=to, **options).lines)


def assert_same(ours: dict, theirs: dict):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def unchunked(state_dict: dict) -> dict:
    """The blocks of a DINOv2 in one list: `blocks.C.N.*` is `blocks.N.*`."""
    renamed = {}
    for name, tensor in state_dict.items():
        parts = name.split(".")
        if "blocks" in parts and parts[parts.index("blocks") + 2].isdecimal():
            del parts[parts.index("blocks") + 1]
        renamed[".".join(parts)] = tensor
    return renamed


TEACHERS = [("dinov2", "shared"), ("dinov2", "separate"), ("dinov3", "")]


@pytest.mark.parametrize(("family", "name"), TEACHERS)
@torch.no_grad()
def test_the_teacher_of_a_run(tmp_path, family, name):
    metadata, tensors = read_golden(f"{family}_checkpoint_outputs")
    tensors, metadata = (with_prefix(tensors, f"{name}."), metadata[name]) if name else (tensors, metadata)
    source = GOLDEN_DIR / f"{family}_teacher_checkpoint{'_' * bool(name)}{name}.pth"
    lines = converted(source, tmp_path / "dino", num_heads=metadata["vit"]["num_heads"])
    assert "as original" in lines
    assert "left out" not in lines
    model = DinoModel.from_pretrained(tmp_path / "dino").eval()
    output = model(tensors["input"], project_patches=True)
    assert_close(output.pooler_output, tensors["x_norm_clstoken"])
    assert_close(output.projection, tensors["dino_head"])
    assert_close(output.patch_projection.flatten(0, 1), tensors["ibot_head"])
    if "x_norm_patchtokens" in tensors:
        assert_close(output.patch_tokens, tensors["x_norm_patchtokens"])
    assert model.config.patch_head == ("ibot_head" in metadata)
    expected = config_of(metadata["vit"])
    for option in (
        "num_register_tokens",
        "use_swiglu_ffn",
        "feed_forward_width",
        "key_bias",
        "position_interpolation",
    ):
        assert getattr(model.config, option) == getattr(expected, option)
    assert model.config.layer_norm_eps == expected.layer_norm_eps
    assert not (tmp_path / "dino" / "training.json").exists()
    converted(tmp_path / "dino", tmp_path / "back.pth", "original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["teacher"]
    assert_same(back, unchunked(torch.load(source, weights_only=True)["teacher"]))


RECORDED = {"dinov2": "dinov2_vit", "dinov3": "dinov3_vit", "xcit": "xcit", "convnext": "dinov3_convnext"}


def golden_backbones() -> list[tuple[str, str]]:
    found = []
    for file in (RECORDED[family] for family in ("dinov2", "dinov3", "xcit")):
        metadata, tensors = read_golden(file)
        found += [(file, name) for name in sorted(metadata) if f"{name}.state_dict.cls_token" in tensors]
    return [*found, (RECORDED["convnext"], "convnext")]


# what no tensor tells, of models that were not published
UNTOLD = ("rope_coordinates", "rope_dtype", "layer_norm_eps", "tokens_norm")


@pytest.mark.parametrize(("file", "name"), golden_backbones())
@torch.no_grad()
def test_a_bare_backbone(tmp_path, file, name):
    metadata, tensors = read_golden(file)
    inputs = with_prefix(tensors, "input.")
    tensors = tensors if file == "dinov3_convnext" else with_prefix(tensors, f"{name}.")
    state_dict = with_prefix(tensors, "state_dict.")
    torch.save(state_dict, tmp_path / "bare.pth")
    conversion = to_dino(str(tmp_path / "bare.pth"), num_heads=metadata[name].get("num_heads"))
    assert conversion.format == "original"
    expected = config_of(metadata[name])
    is_published_kind = file != "dinov2_vit" or expected.layerscale_value is not None
    for option in UNTOLD if is_published_kind else (*UNTOLD, "position_interpolation"):
        setattr(conversion.config, option, getattr(expected, option))
    model = conversion.build_model()
    key = "cls" if file == "xcit" else "x_norm_clstoken"
    sizes = with_prefix(tensors, f"{key}.")
    assert len(sizes) > 1
    for size, features in sizes.items():
        assert_close(model(inputs[size]).pooler_output, features, 1e-3 if "bf16" in name else 1e-5)
    back = format_for(conversion.config, "original").from_dino(conversion.config, conversion.state_dict)
    assert_same(back.contents, state_dict)


PUBLISHED = [name for name in DinoConfig.presets() if name.startswith(("dinov2", "dinov3", "dino_xcit"))]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_a_published_backbone_tell_its_whole_configuration(name):
    """With one block where numbers would be joined, which takes memory; all others take none."""
    fewer = {"num_hidden_layers": 1} if "vitg" in name else {}
    config = DinoConfig.from_preset(name, head_type=None, **fewer)
    with torch.device("meta"):
        expected = DinoModel(config).state_dict()
    state_dict = {
        key: torch.tensor(i + 0.5).to(t.dtype).expand(t.shape) for i, (key, t) in enumerate(expected.items())
    }
    if config.has_rotary_positions:  # published ones are rounded
        state_dict[PERIODS] = computed_periods(config).bfloat16().float()
    packed = format_for(config, "original").from_dino(config, state_dict)
    assert packed.notes == []
    assert recognise(packed) == "original"
    packed.source = f"{name}_pretrain_sat493m.pth" if "sat" in name else f"{name}_pretrain.pth"
    back_config, back = format_of(packed, "original").to_dino(packed)
    assert back_config.to_dict() == config.to_dict()
    assert set(back) == set(state_dict)
    for key, tensor in state_dict.items():  # every tensor has one value, but these have billions of numbers
        first = (0,) * tensor.ndim
        assert (back[key].shape, back[key][first]) == (tensor.shape, tensor[first]), key


@torch.no_grad()
def test_a_mask_of_the_key_bias_that_masks_something_else(tmp_path):
    teacher = torch.load(GOLDEN_DIR / "dinov3_teacher_checkpoint.pth", weights_only=True)["teacher"]
    name = "backbone.blocks.0.attn.qkv.bias_mask"
    torch.save({"teacher": {**teacher, name: torch.ones_like(teacher[name])}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="does not hold ones for query and value and zeros for the key"):
        to_dino(str(tmp_path / "file.pth"))


@pytest.mark.parametrize(("family", "name", "weight_norm"), [("dinov2", "_shared", False), ("dinov3", "", True)])
def test_a_head_of_another_kind_is_left_out_and_that_is_said(family, name, weight_norm):
    source = GOLDEN_DIR / f"{family}_teacher_checkpoint{name}.pth"
    heads = read_golden(f"{family}_checkpoint_outputs")[0]
    conversion = to_dino(str(source), num_heads=heads.get("shared", heads)["vit"]["num_heads"])
    config = type(conversion.config)(**{**conversion.config.to_dict(), "head_weight_norm": weight_norm})
    packed = format_for(config, "original").from_dino(config, DinoModel(config).state_dict())
    assert "left out: the heads, whose last layer is" in packed.notes[0]
    assert not any("head" in key for key in packed.contents)


def test_the_license_of_dinov3_goes_along(tmp_path):
    source = GOLDEN_DIR / "dinov3_teacher_checkpoint.pth"
    converted(source, tmp_path / "dino")
    converted(tmp_path / "dino", tmp_path / "timm", "timm")
    for folder in ("dino", "timm"):
        assert to_dino(str(tmp_path / folder), num_heads=2).config.weights_license == "dinov3-license"


LATER = ["dinov2", "dinov3", "xcit", "convnext"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [{}, {"patch_head": True, "patch_projection_dim": 20}, {"head_type": None}], ids=str)
@pytest.mark.parametrize("family", LATER)
def test_there_and_back_through_files(tmp_path, family, heads, dtype):
    """Bit for bit, with heads of their own kind; patches have none in DINO's original, in whose format XCiTs are."""
    kind = {"xcit": {}, "dinov2": {"norm_last_layer": False}}.get(family, {"head_weight_norm": False})
    heads = {} if family == "xcit" and "patch_head" in heads else heads
    model = DinoModel(tiny_config(family, **kind, **heads)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    model.save_pretrained(tmp_path / "rounded")
    model = DinoModel.from_pretrained(tmp_path / "rounded")  # the periods of rotary positions are float32 in it
    assert model.dtype == dtype
    model.save_pretrained(tmp_path / "dino")
    lines = converted(tmp_path / "dino", tmp_path / "there.pth", "original")
    assert "left out" not in lines
    converted(tmp_path / "there.pth", tmp_path / "back", num_heads=model.config.num_attention_heads)
    back = DinoModel.from_pretrained(tmp_path / "back")
    assert_same(back.state_dict(), model.state_dict())
    converted(tmp_path / "back", tmp_path / "again.pth", "original")
    first, second = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("there", "again"))
    assert_same(first.get("teacher", first), second.get("teacher", second))


def test_the_heads_are_named(tmp_path):
    source = GOLDEN_DIR / "dinov3_teacher_checkpoint.pth"
    assert "dino head and a head of the patches" in converted(source, tmp_path / "dino")


@pytest.mark.parametrize("to", ["original", "timm"])
def test_libraries_have_convnexts_of_four_stages(tmp_path, to):
    DinoModel(tiny_config("convnext", depths=[1, 1], hidden_sizes=[8, 12])).save_pretrained(tmp_path / "dino")
    with pytest.raises(ValueError, match=r"cannot hold a convnext_tiny with num_hidden_layers=2, only with 4$"):
        converted(tmp_path / "dino", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "to", "message"),
    [
        ("xcit", "transformers", "the format of transformers' ViT cannot hold a xcit_tiny_12"),
        ("dinov2", "lesson", "the format of the lesson cannot hold a vit_tiny"),
        ("convnext", "torchvision", "the format of torchvision cannot hold a convnext_tiny"),
    ],
)
def test_a_library_that_has_no_such_model(tmp_path, family, to, message):
    DinoModel(tiny_config(family)).save_pretrained(tmp_path / "dino")
    with pytest.raises(ValueError, match=message):
        converted(tmp_path / "dino", tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["transformers", "timm"])
@pytest.mark.parametrize(("family", "name"), [("dinov2", "separate"), ("dinov3", "")])
@torch.no_grad()
def test_a_teacher_in_other_libraries(tmp_path, family, name, to):
    metadata, tensors = read_golden(f"{family}_checkpoint_outputs")
    tensors, metadata = (with_prefix(tensors, f"{name}."), metadata[name]) if name else (tensors, metadata)
    heads = metadata["vit"]["num_heads"]
    source = GOLDEN_DIR / f"{family}_teacher_checkpoint{'_' * bool(name)}{name}.pth"
    lines = converted(source, tmp_path / "theirs", to, num_heads=heads)
    assert "left out: the dino projection head" in lines
    assert "left out: the projection head of the patches" in lines
    lines = converted(tmp_path / "theirs", tmp_path / "back", verify=True)
    assert float(lines.split()[-4]) < 1e-5
    model = DinoModel.from_pretrained(tmp_path / "back").eval()
    assert_close(model(tensors["input"]).pooler_output, tensors["x_norm_clstoken"])


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "convnext"])
def test_whole_numbers_are_floats_in_transformers(tmp_path, family):
    whole = {"layerscale_value": 1, "drop_path_rate": 0}
    whole |= {"rope_theta": 100, "untie_cls_and_patch_norms": False} if family == "dinov3" else {}
    DinoModel(tiny_config(family, **whole, head_type=None)).save_pretrained(tmp_path / "dino")
    assert "wrote" in converted(tmp_path / "dino", tmp_path / "out", "transformers")


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@torch.no_grad()
def test_weights_of_this_project_without_their_configuration(tmp_path, family):
    """As training code of one's own saves them."""
    values = {"token_init_std": 1e-6, "position_interpolation": "antialias"} if family == "dinov2" else {}
    model = DinoModel(tiny_config(family, **values)).eval()
    for tensor in model.parameters():
        tensor.add_(torch.rand_like(tensor) * 0.2)
    state_dict = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state_dict, "pytorch-lightning_version": "2.5.0"}, tmp_path / "last.ckpt")
    conversion = to_dino(str(tmp_path / "last.ckpt"), num_heads=model.config.num_attention_heads)
    notes = "\n".join(conversion.checkpoint.notes)
    assert ("taken for a DINOv3 with key_bias=False and layer_norm_eps=1e-05" in notes) == (family == "dinov3")
    assert_same(conversion.state_dict, model.state_dict())
    images = torch.randn(2, 3, 40, 32)
    assert_close(conversion.build_model()(images).projection, model(images).projection)
