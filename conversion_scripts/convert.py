# SPDX-License-Identifier: Apache-2.0
"""Converts a DINO checkpoint of any format into any other, and compares the two."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from conversion_scripts.checkpoint import save_tensors, write_checkpoint
from conversion_scripts.options import ConvertOptions
from conversion_scripts.original import training_state
from conversion_scripts.recognition import FORMATS, Conversion, format_for, format_of, to_dino
from modeling_dino.checkpoint_files import CENTER_NAME
from modeling_dino.runtime.whole_files import check_is_free, whole_output
from modeling_dino.training.self_distillation import DinoForPreTraining


@dataclass(frozen=True)
class ConversionSummary:
    """Says what was recognised, left out and written, a line each."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def convert(options: ConvertOptions) -> ConversionSummary:
    """
    Converts a checkpoint.

    Raises:
        ValueError: if the source is not a DINO, or the target cannot hold it; nothing is written then.
        OSError: if there is no such source.
    """
    output, num_heads = Path(options.output), options.num_heads
    check_is_free(output)
    which = "teacher" if options.which == "both" else options.which
    conversion = to_dino(options.source, which, num_heads, options.from_format)
    if options.which == "both":
        notes = write_both_networks(conversion, output, num_heads)
    elif options.to == "dino":
        notes = write_dino(conversion, output)
    else:
        checkpoint = format_for(conversion.config, options.to).from_dino(
            conversion.config, conversion.state_dict, conversion.image_transform, conversion.classifier
        )
        write_checkpoint(checkpoint, output)
        notes = checkpoint.notes
    lines = [str(conversion), *conversion.checkpoint.notes, *notes, f"wrote {options.output}"]
    if options.verify:
        lines.append(verify(conversion, output, options.to, num_heads))
    return ConversionSummary(tuple(lines))


def write_dino(conversion: Conversion, output: Path) -> list[str]:
    """Writes a folder for `DinoModel.from_pretrained`, with what pretraining goes on from beside it."""
    state = training_state(conversion.checkpoint)
    center = state.pop("center", None)
    carried = [CENTER_NAME] * (center is not None) + ["training.json"] * bool(state)
    with whole_output(output) as partial:
        model = conversion.build_classifier() if conversion.classifier else conversion.build_model()
        model.save_pretrained(partial)
        if center is not None:
            save_tensors({"center": center}, partial / CENTER_NAME)
        if state:
            (partial / "training.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return [f"carried along: {', '.join(carried)}"] * bool(carried)


def write_both_networks(conversion: Conversion, output: Path, num_heads: int | None) -> list[str]:
    """
    Writes a folder for `DinoForPreTraining.from_pretrained`: teacher, as converted, student and center of a run.

    Raises ValueError if the checkpoint is not a whole training run of the original.
    """
    checkpoint = conversion.checkpoint
    center = training_state(checkpoint).get("center")
    if center is None:
        raise ValueError(f"{checkpoint.source} is not a whole training run of the original: it has no center")
    checkpoint_format = format_of(checkpoint, "original")
    config, student = checkpoint_format.to_dino(replace(checkpoint, notes=[]), "student", num_heads)
    networks = {"student": student, "teacher": conversion.state_dict}
    state_dict = {f"{which}.{name}": tensor for which, network in networks.items() for name, tensor in network.items()}
    model = DinoForPreTraining.from_pretrained(
        None, config=config, state_dict={**state_dict, "center": center}, dtype=conversion.dtype
    )
    model.image_transform = conversion.image_transform
    with whole_output(output) as partial:
        model.save_pretrained(partial)
    return ["student, teacher and center: DinoForPreTraining goes on from there, DinoModel is the teacher"]


@torch.no_grad()
def verify(conversion: Conversion, output: Path, to: str, num_heads: int | None) -> str:
    """
    Compares the features of the source, by its own library, with those of what was written. Raises ValueError if they
    are not finite.
    """
    config = conversion.config
    try:
        reference = None
        if conversion.format in FORMATS:
            reference = format_of(conversion.checkpoint, conversion.format).reference(conversion.checkpoint, config)
    except (ModuleNotFoundError, ValueError) as error:
        return f"not verified: {error}"
    by = f"by {conversion.format}" if reference else "as converted, since its format has no library"
    reference = reference or conversion.build_model()
    written = {"num_heads": num_heads or config.num_attention_heads, "from_format": None if to == "dino" else to}
    result = to_dino(str(output), **written).build_model()
    images = torch.randn(2, config.num_channels, config.image_size, config.image_size, dtype=conversion.dtype)
    expected = reference(images)
    expected = (expected if isinstance(expected, torch.Tensor) else expected.pooler_output).float()
    difference = (result(images).pooler_output.float() - expected).abs().max() / expected.abs().max()
    if not difference.isfinite():
        raise ValueError(f"{output} is written, but its features or the source's are infinite or not numbers")
    return f"verified: the result's features differ from the source's ({by}) by {difference:.1e} of the largest"
