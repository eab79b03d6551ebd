# SPDX-License-Identifier: Apache-2.0
"""Converts a DINO checkpoint of any format into any other, and compares the two."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from conversion_scripts.checkpoint import save_tensors, write_checkpoint
from conversion_scripts.checkpoint_format import CheckpointFormat
from conversion_scripts.options import ConvertOptions
from conversion_scripts.original import training_state
from conversion_scripts.recognition import FORMATS, Conversion, format_for, format_of, to_dino
from modeling_dino.checkpoint_files import CENTER_NAME
from modeling_dino.runtime.extras import DISTRIBUTION, installed_version
from modeling_dino.runtime.options import takes_options
from modeling_dino.runtime.whole_files import check_is_free, whole_output
from modeling_dino.training.self_distillation import DinoForPreTraining


Features = Callable[[torch.Tensor], torch.Tensor]
# how much features of a right conversion may differ, of the largest, by the dtype of the weights
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4}
LARGEST_TOLERANCE = 5e-2


@dataclass(frozen=True)
class ConversionSummary:
    """Says what was recognised, left out and written, a line each."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@takes_options(ConvertOptions, command="convert")
def convert_checkpoint(options: ConvertOptions) -> ConversionSummary:
    """
    Returns:
        what was recognised, left out and written.

    Raises:
        ValueError: if the source is not a DINO, or the target cannot hold it; nothing is written then. Also if what
            was written is to be verified, and is wrong.
        OSError: if there is no such source.
        ImportError: if it is to be verified by a library that is not installed.
    """
    output, num_heads = Path(options.output), options.num_heads
    check_is_free(output)
    if options.verify:
        check_libraries(options.to, *([options.from_format] if options.from_format else []))
    which = "teacher" if options.which == "both" else options.which
    conversion = to_dino(options.source, which, num_heads, options.from_format)
    if options.verify:  # before anything is written, as it may be that the source cannot be compared
        check_libraries(conversion.format)
        source = features_by_library(conversion)
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
        lines.append(verify(conversion, source, options))
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


def check_libraries(*formats: str):
    """Raises ImportError if the library of a format, which its models are compared by, is not installed."""
    for name in formats:
        if has_library(name) and find_spec(name) is None:
            raise ImportError(f"{name} is not installed, which --verify compares with: run `pip install {name}`")


def has_library(name: str) -> bool:
    """Returns whether there is a library whose models are of a format."""
    methods = {type(one).reference for one in FORMATS.get(name, ())}
    return bool(methods - {CheckpointFormat.reference})


def features_by_library(conversion: Conversion) -> tuple[Features, str]:
    """
    Returns the model of a checkpoint's own library, or ours where its format has none, as a function of images; and
    the library with its version. Raises ValueError if the checkpoint does not say which model of the library it is.
    """
    if has_library(conversion.format):
        checkpoint_format = format_of(conversion.checkpoint, conversion.format)
        reference = checkpoint_format.reference(conversion.checkpoint, conversion.config)
        return reference, f"{conversion.format} {installed_version(conversion.format)}"
    model = conversion.build_model()
    return lambda images: model(images).pooler_output, f"{DISTRIBUTION} {installed_version(DISTRIBUTION)}"


@torch.no_grad()
def verify(conversion: Conversion, source: tuple[Features, str], options: ConvertOptions) -> str:
    """
    Compares the features of the source with those of what was written, each by its own library.

    Args:
        source: what [`features_by_library`] returns for the source.

    Returns:
        a line that says what was compared, and how much it differs.

    Raises:
        ValueError: if they differ by more than rounding, or are not finite.
    """
    config, num_heads = conversion.config, options.num_heads or conversion.config.num_attention_heads
    written = to_dino(options.output, num_heads=num_heads, from_format=None if options.to == "dino" else options.to)
    (expected_of, source_library), (found_of, library) = source, features_by_library(written)
    shape = (2, config.num_channels, config.image_size, config.image_size)
    images = torch.randn(shape, dtype=conversion.dtype)
    expected, found = (features(images).float() for features in (expected_of, found_of))
    difference = (found - expected).abs().max() / expected.abs().max()
    if not difference.isfinite():
        raise ValueError(f"{options.output} is written, but its features or the source's are infinite or not numbers")
    compared = f"the {config.hidden_size} features of {shape[0]} random images of {' x '.join(map(str, shape[1:]))}"
    compared += f", by {source_library} from {options.source} and by {library} from {options.output}"
    tolerance = TOLERANCES.get(conversion.dtype, LARGEST_TOLERANCE)
    if difference > tolerance:
        raise ValueError(
            f"{options.output} is written, but is wrong: {compared}, differ by {difference:.1e} of the largest, which "
            f"is more than {tolerance:.0e}"
        )
    alone = f"read back ({options.to} and {conversion.format} have no library to compare with)"
    verified = "verified" if has_library(conversion.format) or has_library(options.to) else alone
    return f"{verified}: {compared}, differ by {difference:.1e} of the largest"
