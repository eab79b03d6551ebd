# SPDX-License-Identifier: Apache-2.0
"""
Measures features from JPEG files: `dino extract` beside transformers' pipeline, and beside its own two halves alone.

`dino extract` is measured as users run it, from opening the files and loading the model to the last shard on the disk;
graphs have been exported beforehand, as is done once for a model. The pipelines are loaded beforehand, too, and write
nothing.
"""

import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from ..data.evaluation_transform import ImageTransform
from ..data.reader import ImageReader, read_batches
from ..export.engines import installed_engines
from ..export.export import export_model
from ..extraction.compute import FeatureComputer, batches_at_once, computing_threads, feature_shapes
from ..extraction.extract import extract_features
from ..extraction.feature_files import FeatureFolder, load_features
from ..extraction.feature_models import load_feature_model
from ..extraction.options import ExtractionSettings, ExtractOptions
from ..extraction.plan import Plan
from ..hub.loading import DTYPES, load_config, load_image_processor
from ..modeling_dino import DinoModel
from ..runtime.processes import cores_of_process, processes
from .options import BenchOptions
from .timing import take_turns


SIZE = (500, 375)  # of the files; that of a usual photograph of ImageNet
BATCH_SIZE = 32
FARTHEST = 1e-3  # cosine distance of equal features; not 0, as the pipelines resize tensors instead of images
READING = "reading alone"


def measure_extraction(name: str, options: BenchOptions) -> dict:
    """
    Measures the extraction by each engine, and its ratio to the fastest pipeline in float32.

    `share_of_halves` is the rate as a share of what the cores allow if each is busy all the time with what reading
    alone and the model alone take of the processor's time.
    """
    config = load_config(name)
    config.head_type = None
    with tempfile.TemporaryDirectory(prefix="dino-") as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        DinoModel(config).save_pretrained(folder / "model")
        files = write_jpegs(folder, options.extraction_images, SIZE)
        settings = settings_of_engines(folder)
        functions: dict[str, Callable] = {who: partial(extract, folder, of) for who, of in settings.items()}
        if "transformers" in options.against and find_spec("torchvision") is not None:
            functions |= pipelines(folder / "model", files)
        features = {}
        recorded = {who: partial(_record, features, who, function) for who, function in functions.items()}
        clocks = (time.perf_counter, processor_time)
        alone = halves(folder, settings)
        timed, of_cpu = (
            {who: statistics.median(values) for who, values in by_clock.items()}
            for by_clock in take_turns(recorded | alone, options.rounds, clocks)
        )
    distances = {who: cosine_distance(found, features["dino"]) for who, found in features.items()}
    line = {"what": "extraction", "model": name, "batch_size": BATCH_SIZE, "jpeg": f"{SIZE[0]}x{SIZE[1]}"}
    line |= {"images": len(files), "seconds": timed, "cosine_distance": distances}
    line["unequal"] = [who for who, distance in distances.items() if distance > FARTHEST]
    line["images_per_second"] = {who: len(files) / seconds for who, seconds in timed.items()}
    line["cpu_seconds"] = {who: of_cpu[who] for who in alone}
    cores = cores_of_process(1)
    line["share_of_halves"] = {
        who: (of_cpu[READING] + of_cpu[_model_alone(who)]) / cores / timed[who] for who in settings
    }
    equal = [who for who in functions if who not in line["unequal"]]
    rivals = [who for who in equal if who.startswith("pipeline") and "bfloat16" not in who]
    line["fastest_rival"] = fastest = min(rivals, key=timed.get, default=None)
    if fastest is not None:
        line["ratio"] = {who: timed[fastest] / timed[who] for who in equal}
    return line


def write_jpegs(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Writes different crops of photographs."""
    from ..demo.images import copy_photographs  # which needs the extra `demo`

    photographs = [Image.open(path).convert("RGB") for path in copy_photographs(folder / "photographs")]
    draw = random.Random(0)
    (folder / "images").mkdir()
    files = []
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        side = draw.uniform(0.4, 1) * min(photograph.width / size[0], photograph.height / size[1])
        width, height = side * size[0], side * size[1]
        left, top = draw.uniform(0, photograph.width - width), draw.uniform(0, photograph.height - height)
        crop = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        files.append(folder / "images" / f"{i:06d}.jpg")
        crop.save(files[-1], quality=92)
    return list(map(str, files))


def settings_of_engines(folder: Path) -> dict[str, ExtractionSettings]:
    """Returns what is extracted by PyTorch and by each engine that is installed, whose graphs are exported first."""
    images, found = str(folder / "images"), {}
    for engine, dtype in itertools.product(("torch", *installed_engines()), ("float32", "bfloat16")):
        if (engine, dtype) == ("onnxruntime", "bfloat16"):  # which it does not compute in on a CPU
            continue
        model = folder / ("model" if engine == "torch" else f"{engine}-{dtype}")
        if engine != "torch":
            to = "onnx" if engine == "onnxruntime" else engine
            export_model(model=folder / "model", output=model, to=to, outputs="features", dtype=dtype)
        name = " ".join(filter(None, ("dino", engine.removeprefix("torch"), dtype.removeprefix("float32"))))
        found[name] = ExtractionSettings(
            model=str(model), images=images, batch_size=BATCH_SIZE, engine=engine, dtype=dtype
        )
    return found


def extract(folder: Path, settings: ExtractionSettings) -> np.ndarray:
    """Extracts the features of all images, (images, dim)."""
    output = str(folder / "features")
    extract_features(ExtractOptions(**vars(settings), output=output, overwrite=True, progress=False))
    return load_features(output)["feature"].copy()


def pipelines(model: Path, files: list[str]) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that compute the features of the files by transformers' pipeline, (images, dim)."""

    def compute(pipe: Callable, num_workers: int) -> np.ndarray:
        outputs = pipe(files, batch_size=BATCH_SIZE, num_workers=num_workers, pool=True, return_tensors=True)
        return torch.cat(list(outputs)).float().numpy()

    functions = {}
    for dtype, num_workers in itertools.product(("float32", "bfloat16"), (0, 1)):
        pipe = pipeline("image-feature-extraction", model=str(model), device="cpu", dtype=DTYPES[dtype])
        workers = f"{num_workers} worker{'s' if num_workers != 1 else ''}"
        name = " ".join(filter(None, ("pipeline", dtype.removeprefix("float32"), workers)))
        functions[name] = partial(compute, pipe, num_workers)
    return functions


def halves(folder: Path, settings: dict[str, ExtractionSettings]) -> dict[str, Callable[[], None]]:
    """
    Returns functions that only read the images, and only compute the features of read images, each on all cores: what
    runs beside takes some of a core's time from the caches that it shares.
    """
    first = settings["dino"]
    state, source = processes(), first.open_source()
    batch_size = first.batch_size_on(state.device)
    model = load_feature_model(first)
    processor = load_image_processor(first.model, model.config)
    shapes = feature_shapes(model.config, processor, first)
    nothing = FeatureFolder(folder / "nothing", {}, source.columns, shapes)
    transform = ImageTransform(processor, model.config.num_channels)
    reader = ImageReader(transform, model.config.num_channels, transform.rescale_factor)

    def read() -> list:
        plan = Plan(source, nothing, batch_size, rank=0, num_processes=1, take=itertools.count().__next__)
        return list(read_batches(reader, plan, num_workers=cores_of_process(1)))

    batches = read()

    def compute(computer: FeatureComputer):
        with computing_threads(state.device) as map_in_order:
            for _ in map_in_order(computer, batches):
                pass

    functions: dict[str, Callable] = {READING: read}
    for who, of in settings.items():
        features = load_feature_model(of).on(state.device, processor, batches_at_once(state.device))
        computer = FeatureComputer(features, state.device, of, transform.normalizer(state.device), shapes)
        functions[_model_alone(who)] = partial(compute, computer)
    return functions


def processor_time() -> float:
    """Returns the seconds for which this process, and those of it that have ended, had a core."""
    return sum(os.times()[:4])


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns 1 minus the smallest cosine between rows."""
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(1 - cosines.min())


def _record(features: dict[str, np.ndarray], who: str, function: Callable[[], np.ndarray]):
    features[who] = function()


def _model_alone(who: str) -> str:
    return who.replace("dino", "model alone", 1)
