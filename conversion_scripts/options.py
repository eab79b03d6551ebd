# SPDX-License-Identifier: Apache-2.0
"""The options of `dino convert`."""

from dataclasses import dataclass
from typing import ClassVar

from conversion_scripts.recognition import FORMATS
from modeling_dino.runtime.options import StrPath, option


TARGETS = ("dino", *sorted(FORMATS))


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """
    A conversion of a checkpoint.

    Raises:
        ValueError: if a value cannot work.
    """

    summary: ClassVar[str] = (
        "Converts any DINO checkpoint into any format; says what it recognised and what it left out."
    )

    source: StrPath = option("File, folder or hub id of any DINO; its format is recognised.", argument=True)
    output: StrPath = option("Folder, or file for original, lesson and torchvision; must not exist.", argument=True)
    to: str = option(
        "dino, original (of DINO, DINOv2 or DINOv3), timm, transformers, torchvision or lesson (a course's own small "
        "DINO).",
        "dino",
    )
    from_format: str | None = option(
        "Library of the source, where several have the same names of tensors.", None, flag="--from"
    )
    which: str = option("Network of a full checkpoint: teacher, student, or both for pretraining to go on.", "teacher")
    num_heads: int | None = option("Attention heads, if not width / 64.", None)
    verify: bool = option(
        "Compare the features of source and output, each by the library of its format, which must be installed.", False
    )

    def __post_init__(self):
        if self.to not in TARGETS:
            raise ValueError(f"unknown format {self.to!r}: allowed are {', '.join(TARGETS)}")
        if self.from_format is not None and self.from_format not in FORMATS:
            raise ValueError(f"unknown format {self.from_format!r}: allowed are {', '.join(sorted(FORMATS))}")
        if self.which == "both" and self.to != "dino":
            raise ValueError(f"only the format dino holds student and teacher: choose one of them for {self.to}")
        if self.num_heads is not None and self.num_heads < 1:
            raise ValueError(f"num_heads={self.num_heads} must be at least 1")
