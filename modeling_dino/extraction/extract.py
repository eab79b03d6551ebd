# SPDX-License-Identifier: Apache-2.0
"""Extracts the features of many images: source → reader → transform → model → pool → writer.

A shard is the unit of work, in batches of its own, and on a CPU each batch is computed by one thread: its bytes depend
neither on which shards were there before, nor on how many processes and threads compute the others.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import ImageProcessingMixin

from ..data.image_source import ImageSource, remarks_on_images, why_no_images
from ..data.reader import ImageReader, Images, read_batches
from ..hub.loading import load_image_processor
from ..runtime.extras import installed_version
from ..runtime.options import takes_options
from ..runtime.processes import processes, reading_processes, shared_counter, wait_for_everyone
from .compute import FeatureComputer, batches_at_once, computing_threads, feature_shapes
from .feature_files import FeatureFolder
from .feature_models import FeatureModel, load_feature_model
from .options import ExtractionSettings, ExtractOptions
from .plan import Plan


@dataclass(frozen=True)
class ExtractionSummary:
    """Says what a run did, and what is in the folder now."""

    output: Path
    rows: int
    computed: int
    seconds: float
    skipped: dict[str, str]
    notes: dict[str, str]

    @property
    def remarks(self) -> list[str]:
        """Lines about images that were skipped or lost something."""
        return remarks_on_images(self.skipped, self.notes)

    def __str__(self) -> str:
        if not self.computed:
            return f"the features of {self.rows} images are complete: nothing to do -> {self.output}"
        before = f", {self.rows - self.computed} of them from before" if self.rows > self.computed else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        rate = self.computed / self.seconds
        return f"{self.rows} images{before}{skipped}, {self.seconds:.1f} s, {rate:.1f} images/s -> {self.output}"


@takes_options(ExtractOptions, command="extract")
def extract_features(options: ExtractOptions) -> ExtractionSummary | None:
    """
    Under `accelerate launch` every process computes whole shards, so the files are the same for any number.

    Returns:
        what was done; None on processes other than the main one.

    Raises:
        ValueError: if no image can be read, or (with `on_error="fail"`) one cannot, or the folder has something else.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    started, state = time.perf_counter(), processes()
    source = options.open_source()
    if source.num_images == 0:
        raise ValueError(why_no_images(options.images, source.notes))
    model = load_feature_model(options, options.compile)
    processor = load_image_processor(options.model, model.config, options.resize, options.image_size)
    shapes = feature_shapes(model.config, processor, options)
    settings = describe(options, source, model, processor, model.device(state.device))
    folder = FeatureFolder(options.output, settings, source.columns, shapes)
    with folder.opened(options.overwrite) if state.is_main_process else nullcontext():
        wait_for_everyone()
        folder.find_shards()
        rows_before = folder.num_rows
        wait_for_everyone()  # before the first shard is written
        num_parts = compute_shards(options, source, model, processor, folder)
        wait_for_everyone()
        if not state.is_main_process:
            return None
        folder.find_all(num_parts)
        skipped, notes = folder.remarks["skipped"], {**source.notes, **folder.remarks["notes"]}
        if not folder.num_rows:
            folder.clear()
            folder.discard()
            raise ValueError(why_no_images(options.images, source.notes, skipped))
        folder.complete()
    rows, seconds = folder.num_rows, time.perf_counter() - started
    return ExtractionSummary(folder.path, rows, rows - rows_before, seconds, skipped, notes)


def compute_shards(
    options: ExtractOptions,
    source: ImageSource,
    model: FeatureModel,
    processor: ImageProcessingMixin,
    folder: FeatureFolder,
) -> int:
    """Computes the shards that are left to this process; returns the number of parts of the source."""
    from ..data.evaluation_transform import ImageTransform

    state = processes()
    device = model.device(state.device)
    batch_size = options.batch_size_on(device)
    plan = Plan(source, folder, batch_size, state.process_index, state.num_processes, shared_counter())
    folder.check_parts(len(plan.parts))
    plan.check_rows()
    if plan.num_images == 0:
        return len(plan.parts)
    min_side = math.ceil(model.model.backbone.min_image_size / min(options.scales))
    transform = ImageTransform(processor, model.config.num_channels, min_side)
    reader = ImageReader(transform, model.config.num_channels, transform.rescale_factor, transform.fit)
    num_workers = reading_processes(options.num_workers, source.num_images, state.num_processes)
    batches = read_batches(reader, plan, num_workers, pin_memory=device.type == "cuda")
    if options.on_error == "fail":
        batches = refuse_unreadable(batches)
    features = model.on(device, processor, batches_at_once(device))
    compute = FeatureComputer(features, device, options, transform.normalizer(device), folder.shapes)
    with tqdm(total=plan.num_images, unit=" images", disable=not (options.progress and state.is_main_process)) as bar:
        write_shards(folder, batches, compute, bar)
        bar.total = bar.n  # processes take what is left, not equal shares of it
    return len(plan.parts)


def describe(
    settings: ExtractionSettings,
    source: ImageSource,
    model: FeatureModel,
    processor: ImageProcessingMixin,
    device: torch.device,
) -> dict:
    """Returns everything that the features depend on, for the manifest."""
    return {
        **{field.name: getattr(settings, field.name) for field in fields(ExtractionSettings)},
        **model.facts,
        "num_images": source.num_images,
        "images_fingerprint": source.fingerprint(),
        "transform": processor.to_dict(),
        "device": device.type,
        "versions": {name: installed_version(name) for name in model.packages},
    }


def refuse_unreadable(batches: Iterable[Images]) -> Iterator[Images]:
    """Hands batches on; raises ValueError at the first image that cannot be read."""
    for batch in batches:
        for name, reason in batch.skipped.items():
            raise ValueError(f"cannot read {name}: {reason} (--on-error skip goes on without it)")
        yield batch


def write_shards(folder: FeatureFolder, batches: Iterable[Images], compute: FeatureComputer, bar: tqdm):
    """Computes the batches, and writes each shard when its last batch is done."""
    with computing_threads(compute.device) as map_in_order:
        rows, features, skipped, notes = [], [], {}, {}
        for images, computed in map_in_order(compute, batches):
            rows += images.rows
            features.append(computed)
            skipped |= images.skipped
            notes |= images.notes
            bar.update(len(images.rows) + len(images.skipped))
            if images.place.ends_chunk:
                arrays = {name: torch.cat([batch[name] for batch in features]).numpy() for name in folder.shapes}
                remarks = {"skipped": skipped, "notes": notes, "ends_part": images.place.ends_part}
                folder.write_shard(images.place.part, images.place.chunk, rows, arrays, remarks)
                rows, features, skipped, notes = [], [], {}, {}
