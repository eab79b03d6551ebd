# SPDX-License-Identifier: Apache-2.0
"""
Measures features from JPEG files: `dino extract` beside transformers' pipeline, and beside its own two halves alone.

`dino extract` is measured as users run it, from opening the files and loading the model to the last shard on the disk.
The pipelines are loaded beforehand, and write nothing.
"""

import itertools
import random
import tempfile
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
from ..extraction.compute import FeatureComputer, batches_at_once, computing_threads, feature_shapes
from ..extraction.extract import extract_features
from ..extraction.feature_files import FeatureFolder, load_features
from ..extraction.feature_models import load_feature_model
from ..extraction.options import ExtractionSettings, ExtractOptions
from ..extraction.plan import Plan
from ..hub.loading import load_config, load_image_processor
from ..modeling_dino import DinoModel
from ..runtime.processes import processes
from .options import BenchOptions
from .timing import Contest, measure


COUNT, SIZE = 256, (500, 375)  # of the files; the size of a usual photograph of ImageNet
BATCH_SIZE, WORKERS = 32, 1


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


def extractors(folder: Path, model: str, files: list[str], batch_size: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns functions that compute the features of the files, (images, dim)."""
    pipe = pipeline("image-feature-extraction", model=model, device="cpu")

    def of_pipeline(num_workers: int) -> np.ndarray:
        outputs = pipe(files, batch_size=batch_size, num_workers=num_workers, pool=True, return_tensors=True)
        return torch.cat(list(outputs)).numpy()

    def of_extract(engine: str = "torch", dtype: str = "float32") -> np.ndarray:
        extract_features(
            ExtractOptions(
                model=model,
                images=str(folder / "images"),
                output=str(folder / "features"),
                batch_size=batch_size,
                engine=engine,
                dtype=dtype,
                num_workers=WORKERS,
                overwrite=True,
                progress=False,
            )
        )
        return load_features(folder / "features")["feature"].copy()

    return {
        "dino extract": of_extract,
        **{f"dino extract, {engine}": partial(of_extract, engine) for engine in installed_engines()},
        "pipeline": lambda: of_pipeline(0),
        "pipeline, 1 worker": lambda: of_pipeline(1),
    }


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns 1 minus the smallest cosine between rows; not 0, as the pipelines resize tensors instead of images."""
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(1 - cosines.min())


def halves(folder: Path) -> dict[str, Callable[[], None]]:
    """Returns functions that only read the images in the worker, and only compute the features of read images."""
    settings = ExtractionSettings(model=str(folder / "model"), images=str(folder / "images"), batch_size=BATCH_SIZE)
    state, source = processes(), settings.open_source()
    model = load_feature_model(settings)
    processor = load_image_processor(settings.model, model.config)
    shapes = feature_shapes(model.config, processor, settings)
    nothing = FeatureFolder(folder / "nothing", {}, source.columns, shapes)
    batch_size = settings.batch_size_on(state.device)
    transform = ImageTransform(processor, model.config.num_channels)
    reader = ImageReader(transform, model.config.num_channels, transform.rescale_factor)
    features = model.on(state.device, processor, batches_at_once(state.device))
    compute = FeatureComputer(features, state.device, settings, transform.normalizer(state.device), shapes)

    def read() -> list:
        plan = Plan(source, nothing, batch_size, rank=0, num_processes=1, take=itertools.count().__next__)
        return list(read_batches(reader, plan, WORKERS))

    batches = read()

    def computed():
        with computing_threads(state.device) as map_in_order:
            list(map_in_order(compute, batches))

    return {"reading alone": read, "model alone": computed}


def measure_extraction(name: str, options: BenchOptions) -> dict:
    """Measures the extraction, and its ratio to the faster of the pipelines and to the slower of the halves."""
    config = load_config(name)
    config.head_type = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        DinoModel(config).save_pretrained(folder / "model")
        files = write_jpegs(folder, COUNT, SIZE)
        alone = halves(folder)
        functions = extractors(folder, str(folder / "model"), files, BATCH_SIZE)
        if "transformers" not in options.against or find_spec("torchvision") is None:
            functions = {who: function for who, function in functions.items() if who.startswith("dino")}
        facts = {"batch_size": BATCH_SIZE, "jpeg": f"{SIZE[0]}x{SIZE[1]}", "workers": WORKERS}
        features = {who: function() for who, function in functions.items()}
        facts["cosine_distance"] = max(largest_difference(features["dino extract"], x) for x in features.values())
        if facts["cosine_distance"] > 1e-3:
            return {"what": "extraction", "model": name, **facts, "seconds": {}, "unequal": list(functions)[1:]}
        ours = [*(who for who in functions if who.startswith("dino")), *alone]
        line = measure(Contest("extraction", name, {**functions, **alone}, ours, None, COUNT, facts=facts), options)
        seconds = line["seconds"]
        line["share_of_slower_half"] = max(seconds[half] for half in alone) / seconds["dino extract"]
        return line
