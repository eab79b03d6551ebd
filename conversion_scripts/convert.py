# SPDX-License-Identifier: Apache-2.0
"""Any DINO checkpoint in, any format out: recognises, converts, writes, and compares the two."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

from conversion_scripts import lesson, original, timm_models, torchvision_resnets, transformers_vit
from conversion_scripts.checkpoint import Checkpoint, appearing_whole, read_checkpoint, refuse_existing, write_export
from conversion_scripts.sizes import check_state_dict, first
from modeling_dino.checkpoint_files import CENTER_NAME, network_prefix
from modeling_dino.configuration_dino import DinoConfig
from modeling_dino.modeling_dino import DinoModel, backbone_class
from modeling_dino.training.self_distillation import DinoForPreTraining


# in the order in which they are tried: those known by a folder's configuration or by names of their own come first
FORMATS: dict[str, ModuleType] = {
    "transformers": transformers_vit,
    "lesson": lesson,
    "timm": timm_models,
    "original": original,
    "torchvision": torchvision_resnets,
}
TARGETS = ("dino", *sorted(FORMATS))
# what a configuration remembers of the format its weights came in
ORIGINS = {
    "transformers": "transformers' ViT",
    "lesson": "the lesson's",
    "timm": "timm's",
    "original": "the original's",
    "torchvision": "torchvision's ResNet",
}


@dataclass
class Conversion:
    """What was made of a checkpoint: its format, our configuration and tensors, and what is to be said about it."""

    checkpoint: Checkpoint
    format: str
    config: DinoConfig
    state_dict: dict[str, torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(tensor.dtype for tensor in self.state_dict.values() if tensor.is_floating_point())

    def build_model(self) -> DinoModel:
        """A model around the tensors as they are, in their dtype."""
        return DinoModel.from_pretrained(None, config=self.config, state_dict=self.state_dict, dtype=self.dtype).eval()

    def __str__(self) -> str:
        size = f"{self.config.backbone}, {self.config.hidden_size} wide"
        has_patches = backbone_class(self.config).has_patch_tokens
        patch = f", patch {self.config.patch_size}" if has_patches else ""
        head = "no head" if self.config.head_type is None else f"{self.config.head_type} head"
        return f"recognised {self.checkpoint.source} as {self.format}: {size}{patch}, {head}"


def recognise(checkpoint: Checkpoint) -> str:
    """
    The name of a checkpoint's format.

    Raises:
        ValueError: if it is of none.
    """
    if checkpoint.config is not None and checkpoint.config.get("model_type") == DinoConfig.model_type:
        return "dino"
    for name, module in FORMATS.items():
        if module.matches(checkpoint):
            return name
    if checkpoint.config is not None and "model_type" in checkpoint.config:
        raise ValueError(f"{checkpoint.source} is a model of type {checkpoint.config['model_type']!r}, not a DINO")
    raise ValueError(
        f"{checkpoint.source} is not a DINO of any known format; its first keys are "
        f"{first(checkpoint.contents) or 'none'}"
    )


def to_dino(source: str, which: str = "teacher", num_heads: int | None = None, **location) -> Conversion:
    """
    Reads a checkpoint of any format.

    Args:
        source: file, folder, or id on the hub.
        which: `"teacher"` or `"student"` of a full checkpoint.
        num_heads: attention heads, where neither the width (64 a head) nor a configuration tells.
        location: `revision`, `token`, `cache_dir`, … for the hub.

    Raises:
        ValueError: if it is not a whole DINO of a known format, or unsafe to load; in one line.
        OSError: if there is no such thing.
    """
    if which not in original.NETWORKS:
        raise ValueError(f"unknown network {which!r}: allowed are {', '.join(original.NETWORKS)}")
    checkpoint = read_checkpoint(source, **location)
    name = recognise(checkpoint)
    if name == "dino":
        config, state_dict = DinoConfig.from_dict(checkpoint.config), network_of(checkpoint.contents, which)
        check_state_dict(config, state_dict)
    else:
        config, state_dict = FORMATS[name].to_dino(checkpoint, which, num_heads)
        config.weights_source = weights_source(checkpoint, name, which)
    return Conversion(checkpoint, name, config, state_dict)


def weights_source(checkpoint: Checkpoint, format: str, which: str) -> str:
    """Where weights came from, for others to read: the id on the hub, or a name without the folders it lay in."""
    source = checkpoint.source
    name = os.path.basename(os.path.abspath(source)) if os.path.exists(source) else source
    network = f", its {which}" if original.networks_of(checkpoint).by_name else ""
    return f"{name} ({ORIGINS[format]}{network})"


def network_of(contents: dict[str, torch.Tensor], which: str) -> dict[str, torch.Tensor]:
    """Our own format has one network, or after pretraining two, under `teacher.` and `student.`, and a center."""
    prefix = network_prefix(list(contents), None) and f"{which}."
    return {name.removeprefix(prefix): tensor for name, tensor in contents.items() if name.startswith(prefix)}


def to_pretraining(source: str, num_heads: int | None = None) -> tuple[Conversion, DinoForPreTraining]:
    """
    Student, teacher and center of a training run of the original, to go on from.

    Returns:
        the teacher as by [`to_dino`], and all of it.

    Raises:
        ValueError: if it is not a whole training run.
    """
    conversion = to_dino(source, "teacher", num_heads)
    center = original.training_state(conversion.checkpoint).get("center") if conversion.format == "original" else None
    if center is None:
        raise ValueError(f"{source} is not a whole training run of the original: it has no center")
    config, student = original.to_dino(conversion.checkpoint, "student", num_heads)
    networks = {"student": student, "teacher": conversion.state_dict}
    state_dict = {f"{which}.{name}": tensor for which, network in networks.items() for name, tensor in network.items()}
    model = DinoForPreTraining.from_pretrained(
        None, config=config, state_dict={**state_dict, "center": center}, dtype=conversion.dtype
    )
    return conversion, model


def convert(
    source: str,
    output: str,
    to: str = "dino",
    which: str = "teacher",
    num_heads: int | None = None,
    verify: bool = False,
) -> list[str]:
    """
    Converts a checkpoint.

    Args:
        output: a folder, or a file for the formats original, lesson and torchvision; must not exist.
        to: dino, original, timm, transformers, torchvision or lesson.
        which: `"teacher"` or `"student"`; or `"both"`, with the center, of a training run that is to go on.
        verify: compare the outputs of the source, run by its own library, with the result's.

    Returns:
        what was done and what was left out, a line each.

    Raises:
        ValueError: if the source is not a DINO, or the target cannot hold it; nothing is written then.
        OSError: if there is no such source.
    """
    if to not in TARGETS:
        raise ValueError(f"unknown format {to!r}: allowed are {', '.join(TARGETS)}")
    if which == "both" and to != "dino":
        raise ValueError(f"only the format dino holds student and teacher: choose one of them for {to}")
    refuse_existing(Path(output))
    if which == "both":
        conversion, model = to_pretraining(source, num_heads)
    else:
        conversion = to_dino(source, which, num_heads)
    lines = [str(conversion), *conversion.checkpoint.notes]
    if which == "both":
        with appearing_whole(Path(output)) as partial:
            model.save_pretrained(partial)
        lines.append("student, teacher and center: DinoForPreTraining goes on from there, DinoModel is the teacher")
    elif to == "dino":
        lines += write_dino(conversion, Path(output))
    else:
        export = FORMATS[to].from_dino(conversion.config, conversion.state_dict)
        write_export(export, Path(output))
        lines += export.notes
    lines.append(f"wrote {output}")
    if verify:
        lines.append(verification(conversion, Path(output), num_heads))
    return lines


@torch.no_grad()
def verification(conversion: Conversion, output: Path, num_heads: int | None) -> str:
    """The largest difference between features of the source, by its own library, and of what was written."""
    config = conversion.config
    reference, by = conversion.build_model(), "as converted, since its format has no library"
    make_reference = getattr(FORMATS.get(conversion.format), "reference", None)
    if make_reference is not None:
        try:
            reference, by = make_reference(conversion.checkpoint), f"by {conversion.format}"
        except (ModuleNotFoundError, ValueError) as error:
            return f"not verified: {error}"
    result = to_dino(str(output), num_heads=num_heads or config.num_attention_heads).build_model()
    images = torch.randn(2, config.num_channels, config.image_size, config.image_size, dtype=conversion.dtype)
    expected = reference(images)
    expected = (expected if isinstance(expected, torch.Tensor) else expected.pooler_output).float()
    difference = (result(images).pooler_output.float() - expected).abs().max() / expected.abs().max()
    return f"verified: the result's features differ from the source's ({by}) by {difference:.1e} of the largest"


def write_dino(conversion: Conversion, output: Path) -> list[str]:
    """A folder for `DinoModel.from_pretrained`, with what pretraining goes on from beside it."""
    state = original.training_state(conversion.checkpoint) if conversion.format == "original" else {}
    center = state.pop("center", None)
    carried = []
    with appearing_whole(output) as partial:
        conversion.build_model().save_pretrained(partial)
        if center is not None:
            carried.append(CENTER_NAME)
            save_file({"center": center.contiguous()}, partial / carried[-1])
        if state:
            carried.append("training.json")
            (partial / carried[-1]).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return [f"carried along: {', '.join(carried)}"] * bool(carried)
