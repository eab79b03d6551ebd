# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Features of many images: read and transformed in worker processes, computed in batches, written shard by shard.

A shard is the unit of work, in batches of its own: its bytes depend neither on which shards were there before nor on
who computes the others.
"""

import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import ImageProcessingMixin

from .configuration_dino import DinoConfig
from .extras import require
from .feature_files import FeatureFolder
from .features import check_features, image_features
from .images import ImageList, as_text, find_images, read_image
from .modeling_dino import DinoModel
from .pretrained import load_image_processor, load_model


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ON_ERROR = ("skip", "fail")
FEW_IMAGES = 256  # not worth starting worker processes for


@dataclass(frozen=True)
class ExtractionSettings:
    """
    What features depend on.

    Args:
        model: folder or hub id of a saved model.
        images: see [`find_images`].
        features, last_blocks: see [`image_features`].
        batch_size: images in one forward pass.
        dtype: float32, bfloat16 or float16, of weights and arithmetic; features are stored in float32.

    Raises:
        ValueError: if a value cannot work.
    """

    model: str
    images: str
    features: str = "cls"
    last_blocks: int = 1
    batch_size: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype!r}: allowed are {', '.join(DTYPES)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


@dataclass(frozen=True)
class ExtractionSummary:
    """What a run did, and what is in the folder now."""

    output: Path
    rows: int
    computed: int
    seconds: float
    skipped: dict[str, str]
    notes: dict[str, str]

    def __str__(self) -> str:
        before = f", {self.rows - self.computed} of them from before" if self.rows > self.computed else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        rate = self.computed / self.seconds
        return f"{self.rows} images{before}{skipped}, {self.seconds:.1f} s, {rate:.1f} images/s -> {self.output}"


@dataclass
class Batch:
    """Images of one forward pass; those that could not be read are not among them, but named with the reason."""

    indices: list[int] = field(default_factory=list)
    pixel_values: list[torch.Tensor] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class ImageBatches(Dataset):
    """Reads and transforms the images at given positions; runs in the loader's workers."""

    def __init__(self, images: ImageList, processor: ImageProcessingMixin, num_channels: int):
        self.images, self.processor, self.num_channels = images, processor, num_channels

    def __getitem__(self, indices: list[int]) -> Batch:
        batch = Batch()
        for index in indices:
            path = self.images.paths[index]
            try:
                image, note = read_image(path, self.num_channels)
            except ValueError as error:
                batch.skipped[as_text(path)] = str(error)
                continue
            batch.indices.append(index)
            batch.pixel_values.append(self.processor(image, return_tensors="pt")["pixel_values"][0])
            if note:
                batch.notes[as_text(path)] = note
        return batch


def extract_features(
    settings: ExtractionSettings,
    output: str | os.PathLike,
    *,
    num_workers: int | None = None,
    compile: bool = False,
    on_error: str = "skip",
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionSummary | None:
    """
    Extracts features into a folder; goes on where an earlier run of the same settings stopped.

    Under `accelerate launch` every process computes whole shards, so what is written is the same for any number.

    Args:
        output: a new or empty folder, or one with features of the same settings.
        num_workers: processes that read images; by default one a spare core, none for few images.
        compile: run the model through `torch.compile`.
        on_error: `"skip"` unreadable images (manifest and summary name them), or `"fail"` at the first.
        overwrite: start anew where the folder has features.
        progress: show a progress bar, on the main process.

    Returns:
        what was done; None on processes other than the main one.

    Raises:
        ValueError: if an argument cannot work, or no image can be read, or (with `on_error="fail"`) one cannot.
        OSError: if the model is missing or damaged.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"unknown on_error {on_error!r}: allowed are {', '.join(ON_ERROR)}")
    require("pyarrow")
    state = require("accelerate").PartialState()
    started = time.perf_counter()
    images = find_images(settings.images)
    model = load_model(settings.model, DTYPES[settings.dtype])
    config = model.config
    check_features(config, settings.features, settings.last_blocks)
    processor = load_image_processor(settings.model, config)
    folder = FeatureFolder(output, len(images), feature_shape(config, processor, settings))
    if state.is_main_process:
        folder.open(describe(settings, images, model, processor), overwrite)
    state.wait_for_everyone()
    missing = folder.missing_shards()
    shards = missing[state.process_index :: state.num_processes]
    state.wait_for_everyone()  # before the first of them is written

    model.to(state.device)
    compute = FeatureComputer(model, settings, folder.feature_shape, compile)
    dataset = ImageBatches(images, processor, config.num_channels)
    total = sum(len(folder.images_of(shard)) for shard in shards)
    with tqdm(total=total, unit=" images", disable=not (progress and state.is_main_process)) as bar:
        for shard, batches in read_shards(folder, shards, dataset, settings.batch_size, num_workers):
            rows, features = Batch(), [torch.empty(0, *folder.feature_shape)]
            for batch in batches:
                if on_error == "fail":
                    refuse_unreadable(batch)
                features.append(compute(batch.pixel_values))
                rows.indices += batch.indices
                rows.skipped |= batch.skipped
                rows.notes |= batch.notes
                bar.update(len(batch.indices) + len(batch.skipped))
            remarks = {"skipped": rows.skipped, "notes": rows.notes}
            folder.write(shard, columns_of(images, rows.indices), torch.cat(features).numpy(), remarks)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    manifest = folder.close()
    if not manifest["rows"]:
        path, reason = next(iter(manifest["skipped"].items()))
        raise ValueError(f"none of the {len(images)} images can be read; the first: {path}: {reason}")
    return ExtractionSummary(
        output=folder.path,
        rows=manifest["rows"],
        computed=folder.count_rows(missing),
        seconds=time.perf_counter() - started,
        skipped=manifest["skipped"],
        notes=manifest["notes"],
    )


class FeatureComputer:
    """Features of images (B, C, H, W), given as a list, in float32 on the CPU."""

    def __init__(self, model: DinoModel, settings: ExtractionSettings, shape: tuple[int, ...], compile: bool):
        self.model, self.settings, self.shape = model, settings, shape
        self.function = torch.compile(image_features) if compile else image_features

    @torch.inference_mode()
    def __call__(self, images: list[torch.Tensor]) -> torch.Tensor:
        if not images:
            return torch.empty(0, *self.shape)
        pixel_values = torch.stack(images).to(self.model.device, non_blocking=True)
        features = self.function(self.model, pixel_values, self.settings.features, self.settings.last_blocks)
        return features.float().cpu()


def read_shards(
    folder: FeatureFolder, shards: list[int], dataset: ImageBatches, batch_size: int, num_workers: int | None
) -> Iterator[tuple[int, Iterator[Batch]]]:
    """The given shards, each with its batches, read ahead in worker processes; no batch spans two shards."""
    plan = []
    for shard in shards:
        positions = folder.images_of(shard)
        plan += [(shard, list(positions[i : i + batch_size])) for i in range(0, len(positions), batch_size)]
    if num_workers is None:
        few = sum(len(positions) for _, positions in plan) <= FEW_IMAGES
        num_workers = 0 if few else max(1, (os.cpu_count() or 1) - 1)
    batches = DataLoader(
        dataset,
        batch_size=None,  # the dataset makes the batches
        sampler=[positions for _, positions in plan],
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    for shard, group in itertools.groupby(zip(plan, batches), key=lambda planned: planned[0][0]):
        yield shard, (batch for _, batch in group)


def feature_shape(
    config: DinoConfig, processor: ImageProcessingMixin, settings: ExtractionSettings
) -> tuple[int, ...]:
    """Shape of one image's features, from a model without memory behind its weights."""
    size = processor.crop_size
    with torch.device("meta"):
        model = DinoModel(config).eval()
        image = torch.empty(1, config.num_channels, size["height"], size["width"])
        return tuple(image_features(model, image, settings.features, settings.last_blocks).shape[1:])


def columns_of(images: ImageList, indices: list[int]) -> dict[str, list[str]]:
    """The columns beside the feature: path, and label where the images have classes."""
    columns = {"path": [as_text(images.paths[i]) for i in indices]}
    if images.labels is not None:
        columns["label"] = [as_text(images.labels[i]) for i in indices]
    return columns


def refuse_unreadable(batch: Batch):
    """
    Raises:
        ValueError: if an image of the batch could not be read.
    """
    for path, reason in batch.skipped.items():
        raise ValueError(f"cannot read {path}: {reason} (--on-error skip goes on without it)")


def describe(
    settings: ExtractionSettings, images: ImageList, model: DinoModel, processor: ImageProcessingMixin
) -> dict:
    """Everything the features depend on, for the manifest."""
    return {
        **asdict(settings),
        "model_fingerprint": model_fingerprint(model),
        "images_fingerprint": images_fingerprint(images),
        "transform": processor.to_dict(),
        "versions": {name: version(name) for name in ("torch", "transformers", "pillow")},
    }


def model_fingerprint(model: DinoModel) -> str:
    """A hash of the weights, their names and their dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def images_fingerprint(images: ImageList) -> str:
    """A hash of the paths and sizes of the files."""
    digest = hashlib.sha256()
    for path in images.paths:
        size = os.path.getsize(path) if os.path.exists(path) else None
        digest.update(os.fsencode(path) + f"\0{size}\0".encode())
    return digest.hexdigest()


__all__ = ["ExtractionSettings", "ExtractionSummary", "extract_features"]
