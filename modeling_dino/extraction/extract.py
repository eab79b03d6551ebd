# SPDX-License-Identifier: Apache-2.0
"""Features of many images: read and transformed in worker processes, computed in batches, written shard by shard.

A shard is the unit of work, in batches of its own, and on a CPU each batch is computed by one thread: its bytes depend
neither on which shards were there before, nor on how many processes and threads compute the others.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import ImageProcessingMixin

from ..configuration_dino import DinoConfig
from ..data.decoding import check_resized, encoded_image, read_image
from ..data.image_source import ImageRecord, ImageSource
from ..hub.loading import DTYPES, load_image_processor, load_model, model_fingerprint
from ..modeling_dino import DinoModel
from ..runtime.extras import require
from ..runtime.options import remarks_on_images
from ..runtime.processes import processes, spare_workers
from .feature_files import FeatureFolder, rows_per_shard
from .features import check_features, image_features
from .options import ExtractionSettings, ExtractOptions


if TYPE_CHECKING:
    from accelerate import PartialState
    from PIL import Image

THREADS_OF_DEVICE = 2  # one prepares a batch while the device computes the other's


@dataclass(frozen=True)
class ExtractionSummary:
    """What a run did, and what is in the folder now."""

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
        before = f", {self.rows - self.computed} of them from before" if self.rows > self.computed else ""
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        rate = self.computed / self.seconds
        return f"{self.rows} images{before}{skipped}, {self.seconds:.1f} s, {rate:.1f} images/s -> {self.output}"


@dataclass(frozen=True)
class Place:
    """Where a batch belongs: to which shard (part and chunk), and whether it is the last of the chunk and the part."""

    part: int
    chunk: int
    ends_chunk: bool
    ends_part: bool


@dataclass(frozen=True)
class Batch:
    """Records of one forward pass."""

    place: Place
    records: list[ImageRecord]


@dataclass
class Images:
    """A batch, read and transformed; images that cannot be read are not among `rows`, but named with the reason."""

    place: Place
    rows: list[dict[str, Any]] = field(default_factory=list)
    pixel_values: torch.Tensor | None = None  # (rows, C, H, W); in uint8 where they are still grey levels
    skipped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def pin_memory(self) -> "Images":
        """For the loader, which asks for it before copies to a GPU."""
        if self.pixel_values is not None:
            self.pixel_values = self.pixel_values.pin_memory()
        return self


class ImageReader(Dataset):
    """
    Reads and transforms batches; runs in the loader's workers.

    Args:
        min_side: what is smaller after the transform, in pixels, counts as unreadable.
        levels: give images in grey levels, a quarter of what a worker would have to hand over, where the processor
            can; they are left to be scaled and normalised by [`look_up`].
    """

    def __init__(self, processor: ImageProcessingMixin, num_channels: int, min_side: int = 1, levels: bool = False):
        self.processor, self.num_channels, self.min_side = processor, num_channels, min_side
        self.shorter_side = min(dict(processor.size).values())
        can = hasattr(processor, "grey_levels") and processor.do_rescale and processor.do_normalize
        self.gives_levels = levels and can

    def __getitem__(self, batch: Batch) -> Images:
        images, pixel_values = Images(batch.place), []
        for record in batch.records:
            try:
                image, note = read_image(encoded_image(record), self.num_channels)
                check_resized(image, self.shorter_side)
                pixels = self._transform(image)
                self._check_side(*pixels.shape[1:])
            except (ValueError, OSError) as error:
                images.skipped[record.name] = str(error)
                continue
            images.rows.append(record.columns)
            pixel_values.append(pixels)
            if note:
                images.notes[record.name] = note
        if pixel_values:
            images.pixel_values = torch.stack(pixel_values)
        return images

    def _check_side(self, height: int, width: int):
        if min(height, width) < self.min_side:
            raise ValueError(f"{width} x {height} pixels after resizing: the model needs {self.min_side} each way")

    def _transform(self, image: "Image.Image") -> torch.Tensor:
        if self.gives_levels:
            return self.processor.crop(image)
        return self.processor(image, return_tensors="pt")["pixel_values"][0]

    def grey_levels(self) -> torch.Tensor | None:
        """What is to be made of each, if images are given in them."""
        return self.processor.grey_levels(self.num_channels) if self.gives_levels else None


def extract_features(options: ExtractOptions) -> ExtractionSummary | None:
    """
    Extracts features into a folder; goes on where an earlier run of the same settings stopped.

    Under `accelerate launch` every process computes whole shards, so what is written is the same for any number.

    Returns:
        what was done; None on processes other than the main one.

    Raises:
        ValueError: if no image can be read, or (with `on_error="fail"`) one cannot, or the folder has something else.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    require("pyarrow")
    state = processes()
    started = time.perf_counter()
    source = options.open_source()
    model = load_model(options.model, DTYPES[options.dtype])
    processor = load_image_processor(options.model, model.config, options.resize, options.image_size)
    shapes = feature_shapes(model.config, processor, options)
    settings = describe(options, source, model, processor, state.device)
    folder = FeatureFolder(options.output, settings, source.columns, shapes)
    if state.is_main_process:
        folder.check(options.overwrite)
        folder.open(options.overwrite)
    state.wait_for_everyone()
    folder.find_shards()
    rows_before = folder.count_rows()
    state.wait_for_everyone()  # before the first shard is written

    plan = Plan(source, folder, rows_per_shard(source.num_images, shapes), options.batch_size_on(state.device), state)
    min_side = math.ceil(model.backbone.min_image_size / min(options.scales))
    reader = ImageReader(processor, model.config.num_channels, min_side, levels=True)
    batches = read_batches(plan, reader, options.num_workers, state)
    compute = FeatureComputer(model.to(state.device), options, shapes, reader.grey_levels(), options.compile)
    with tqdm(total=plan.num_images, unit=" images", disable=not (options.progress and state.is_main_process)) as bar:
        write_shards(folder, batches, compute, options.on_error, bar)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    manifest = folder.complete(len(plan.parts))
    if manifest["skipped"] and not manifest["rows"]:
        name, reason = next(iter(manifest["skipped"].items()))
        raise ValueError(f"none of the {len(manifest['skipped'])} images can be read; the first: {name}: {reason}")
    return ExtractionSummary(
        output=folder.path,
        rows=manifest["rows"],
        computed=manifest["rows"] - rows_before,
        seconds=time.perf_counter() - started,
        skipped=manifest["skipped"],
        notes={**source.notes, **manifest["notes"]},
    )


class Plan:
    """
    The batches that are left to this process, in order; none spans two shards.

    Parts are dealt out to the processes whole, so that each is read once; where there are fewer than processes, it is
    their shards that are dealt out.
    """

    def __init__(
        self, source: ImageSource, folder: FeatureFolder, shard_rows: int, batch_size: int, state: "PartialState"
    ):
        self.source, self.folder, self.shard_rows, self.batch_size = source, folder, shard_rows, batch_size
        self.rank, self.num_processes = state.process_index, state.num_processes
        self.parts = source.parts(shard_rows)
        self.share_parts = len(self.parts) >= self.num_processes

    @property
    def num_images(self) -> int | None:
        """How many images are left to this process, where that can be told."""
        left = [part for i, part in enumerate(self.parts) if self._has_to_read(i)]
        return sum(map(len, left)) if all(isinstance(part, range) for part in left) else None

    def __iter__(self) -> Iterator[Batch]:
        for i, part in enumerate(self.parts):
            if self._has_to_read(i):
                yield from self._batches_of(i, part)

    def _has_to_read(self, part: int) -> bool:
        mine = not self.share_parts or part % self.num_processes == self.rank
        return mine and not self.folder.is_whole(part)

    def _has_to_compute(self, part: int, chunk: int) -> bool:
        mine = self.share_parts or (part + chunk) % self.num_processes == self.rank
        return mine and (part, chunk) not in self.folder.shards

    def _batches_of(self, i: int, part: Any) -> Iterator[Batch]:
        records = iter(self.source.read(part))
        ahead = list(itertools.islice(records, 1))
        for chunk in itertools.count():
            wanted, left = self._has_to_compute(i, chunk), self.shard_rows
            while left:
                batch = ahead + list(itertools.islice(records, min(self.batch_size, left) - 1))
                ahead = list(itertools.islice(records, 1))
                left = (left - len(batch)) if ahead else 0
                if wanted:
                    yield Batch(Place(i, chunk, ends_chunk=not left, ends_part=not ahead), batch)
            if not ahead:
                return


def read_batches(plan: Plan, reader: ImageReader, num_workers: int | None, state: "PartialState") -> DataLoader:
    """The batches of a plan, read ahead in worker processes."""
    if num_workers is None:
        num_workers = spare_workers(plan.source.num_images, state.num_processes)
    return DataLoader(
        reader,
        batch_size=None,  # the plan makes the batches
        sampler=plan,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


class FeatureComputer:
    """
    Features of batches of images, in float32 on the CPU, for several threads.

    Where memory does not suffice for a batch, it is computed in smaller ones from then on.
    """

    def __init__(
        self,
        model: DinoModel,
        settings: ExtractionSettings,
        shapes: dict[str, tuple[int, ...]],
        levels: torch.Tensor | None,
        compile: bool,
    ):
        self.model = model if compile else model.prepare_for_inference()
        self.settings, self.shapes = settings, shapes
        self.levels = None if levels is None else levels.to(model.device)
        self.max_batch_size = settings.batch_size
        self.function = torch.compile(image_features) if compile else image_features

    @torch.inference_mode()
    def __call__(self, images: Images) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: if memory does not suffice for a single image.
        """
        if images.pixel_values is None:
            return {column: torch.empty(0, *shape) for column, shape in self.shapes.items()}
        size = self.max_batch_size
        while True:
            try:
                parts = [self._compute(part) for part in images.pixel_values.split(size)]
                return {column: torch.cat([part[column] for part in parts]) for column in self.shapes}
            except RuntimeError as error:
                memory = require("accelerate.utils.memory")
                if not memory.should_reduce_batch_size(error):
                    raise
                if size == 1:
                    raise ValueError(f"one image is too large for the memory of {self.model.device}") from error
            memory.clear_device_cache(garbage_collection=True)
            size = self.max_batch_size = max(1, min(size, len(images.pixel_values)) // 2)

    def _compute(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        pixel_values = pixel_values.to(self.model.device, non_blocking=True)
        if pixel_values.dtype == torch.uint8:
            from ..data.evaluation_transform import look_up

            pixel_values = look_up(self.levels, pixel_values)
        kinds = self.settings.columns
        features = self.function(self.model, pixel_values, list(kinds.values()), *self.settings.pooling)
        return {column: features[kind].float().cpu() for column, kind in kinds.items()}


@contextmanager
def computing_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """
    Threads to compute batches in: on a CPU as many as PyTorch would give to one batch, each with a batch of its own.

    That is faster, and PyTorch's last digits depend on the number of threads that share a batch.
    """
    num_threads = torch.get_num_threads()
    on_cpu = device.type == "cpu"
    with ThreadPoolExecutor(num_threads if on_cpu else THREADS_OF_DEVICE) as pool:
        try:
            if on_cpu:
                torch.set_num_threads(1)
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)


def write_shards(folder: FeatureFolder, batches: Iterable[Images], compute: FeatureComputer, on_error: str, bar: tqdm):
    """Computes the batches, and writes each shard when its last one is there."""
    with computing_threads(compute.model.device) as pool:
        done = in_order(pool, compute, refuse_unreadable(batches) if on_error == "fail" else batches)
        rows, features, skipped, notes = [], [], {}, {}
        for images, computed in done:
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


def in_order(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator[tuple[Any, Any]]:
    """Items and what the function makes of them, in order; a few are computed ahead."""
    waiting = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > pool._max_workers:
            first, result = waiting.popleft()
            yield first, result.result()
    for item, result in waiting:
        yield item, result.result()


def feature_shapes(
    config: DinoConfig, processor: ImageProcessingMixin, settings: ExtractionSettings
) -> dict[str, tuple[int, ...]]:
    """
    Columns of features, and the shape of an image's, from a model without memory behind its weights.

    Raises:
        ValueError: if the model has no such features.
    """
    for kind in settings.columns.values():
        check_features(config, kind, *settings.pooling)
    size = processor.crop_size
    with torch.device("meta"):
        model = DinoModel(config).eval()
        image = torch.empty(1, config.num_channels, size["height"], size["width"])
        features = image_features(model, image, list(settings.columns.values()), *settings.pooling)
    return {column: tuple(features[kind].shape[1:]) for column, kind in settings.columns.items()}


def refuse_unreadable(batches: Iterable[Images]) -> Iterator[Images]:
    """
    The batches, as long as all images can be read.

    Raises:
        ValueError: at the first that cannot.
    """
    for batch in batches:
        for name, reason in batch.skipped.items():
            raise ValueError(f"cannot read {name}: {reason} (--on-error skip goes on without it)")
        yield batch


def describe(
    settings: ExtractionSettings,
    source: ImageSource,
    model: DinoModel,
    processor: ImageProcessingMixin,
    device: torch.device,
) -> dict:
    """Everything the features depend on, for the manifest."""
    return {
        **{field.name: getattr(settings, field.name) for field in fields(ExtractionSettings)},
        "model_revision": getattr(model.config, "_commit_hash", None),
        "model_fingerprint": model_fingerprint(model),
        "num_images": source.num_images,
        "images_fingerprint": source.fingerprint(),
        "transform": processor.to_dict(),
        "device": device.type,
        "versions": {name: version(name) for name in ("modeling-dino", "torch", "transformers", "pillow")},
    }


__all__ = ["ExtractionSummary", "extract_features"]
