import json
import os
import shutil
import tarfile
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pytest
import timm
import torch
from noise_images import write_noise_images
from photographs import save_variants
from PIL import Image
from processes import run_python
from tiny_models import tiny_config
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from modeling_dino import DinoImageProcessor, DinoModel, load_features
from modeling_dino.extraction import feature_files
from modeling_dino.extraction.compute import FeatureComputer
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.features import image_features
from modeling_dino.extraction.options import ExtractionSettings, ExtractOptions
from modeling_dino.hub.loading import load_image_processor
from modeling_dino.runtime.whole_files import one_writer
from modeling_dino.vision_transformer import VisionTransformer


NUM_IMAGES = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with `model` and `images`, which no test changes."""
    folder = tmp_path_factory.mktemp("extract")
    torch.manual_seed(0)
    DinoModel(tiny_config()).save_pretrained(folder / "model")
    write_noise_images(folder / "images", NUM_IMAGES)
    return folder


def settings(folder: Path, images="images", **options) -> ExtractionSettings:
    return ExtractionSettings(**{"model": str(folder / "model"), "images": str(folder / images), **options})


def extract(folder: Path, output: Path, images="images", **options):
    names = {"model": str(folder / "model"), "images": str(folder / images), "output": str(output), "progress": False}
    return extract_features(ExtractOptions(**{**names, **options}))


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of four images."""
    monkeypatch.setattr(feature_files, "MIN_SHARD_ROWS", 4)


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def expected_features(folder: Path, files: list[Path], *arguments) -> np.ndarray:
    """One image at a time, by the model and its image processor."""
    model = DinoModel.from_pretrained(folder / "model").eval()
    processor = DinoImageProcessor.from_pretrained(folder / "model")
    with torch.no_grad():
        rows = []
        for file in files:
            with Image.open(file) as image:
                rows.append(image_features(model, **processor(image, return_tensors="pt"), **dict(arguments))[0])
        return torch.stack(rows).numpy()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_are_the_models(tmp_path, folder, num_workers):
    summary = extract(folder, tmp_path / "out", batch_size=3, num_workers=num_workers)
    assert (summary.rows, summary.computed, summary.skipped) == (NUM_IMAGES, NUM_IMAGES, {})
    table = load_features(tmp_path / "out")
    files = sorted((folder / "images").iterdir())
    assert table["path"].tolist() == list(map(str, files))
    assert table["feature"].dtype == np.float32
    np.testing.assert_allclose(table["feature"], expected_features(folder, files), rtol=0, atol=1e-5)
    assert "label" not in table


@pytest.mark.parametrize(
    ("kind", "last_blocks", "shape"),
    [
        ("cls", 3, (96,)),
        ("patch_mean", 1, (32,)),
        ("cls_patch_mean", 1, (64,)),
        ("patches", 1, (16, 32)),
        ("projection", 1, (24,)),
        ("keys@1", 1, (16, 32)),
        ("tokens@-1", 1, (16, 32)),
    ],
)
def test_every_kind_of_features(tmp_path, folder, kind, last_blocks, shape):
    extract(folder, tmp_path / "out", features=kind, last_blocks=last_blocks)
    features = load_features(tmp_path / "out")["feature"]
    assert features.shape == (NUM_IMAGES, *shape)
    files = sorted((folder / "images").iterdir())
    expected = expected_features(folder, files, ("kinds", kind), ("last_blocks", last_blocks))
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


def test_images_that_are_not_cropped_and_several_scales(tmp_path, folder):
    """Images that are not cropped have sizes of their own; what is then too small for the model is named."""
    images = tmp_path / "images"
    shutil.copytree(folder / "images", images)
    Image.new("RGB", (400, 90)).save(images / "thin.png")  # 24 x 5 pixels
    options = {"features": "cls_gem", "gem_p": 3.0, "scales": (1.0, 0.75)}
    summary = extract(folder, tmp_path / "out", images, resize="longest", image_size=24, **options)
    assert summary.skipped == {
        str(images / "thin.png"): "24 x 5 pixels after resizing: the model needs 11 each way",
    }
    features = load_features(tmp_path / "out")["feature"]
    model = DinoModel.from_pretrained(folder / "model").eval()
    processor = load_image_processor(str(folder / "model"), model.config, "longest", 24)
    with torch.no_grad():
        for file, row in zip(sorted((folder / "images").iterdir()), features, strict=True):
            pixel_values = processor(Image.open(file), return_tensors="pt")["pixel_values"]
            assert max(pixel_values.shape) == 24
            expected = image_features(model, pixel_values, "cls_gem", 1, 3.0, (1.0, 0.75))[0]
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"has features of other settings, scales: \[1.0, 0.75\] -> \[1.0\]"):
        extract(folder, tmp_path / "out", images, resize="longest", image_size=24, **{**options, "scales": (1.0,)})
    for resize in ("longest", "none"):
        with pytest.raises(ValueError, match="patches of images that are not cropped differ in number"):
            extract(folder, tmp_path / "patches", resize=resize, features="patches")


@pytest.fixture
def mixed_images(tmp_path) -> Path:
    """Images of which some share a size, one is smaller than a patch, and one larger than the bound of the test."""
    sizes = [(40, 29), (61, 33), (40, 29), (33, 61), (61, 33), (40, 29), (5, 20), (120, 90), (33, 61), (61, 33)]
    (tmp_path / "images").mkdir()
    for i, size in enumerate(sizes):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def pixel_values_by_pil(file: Path, resize: str) -> torch.Tensor:
    """An image as `--resize` says, by Pillow and the published mean and deviation: (1, 3, H, W)."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if resize == "longest":
        image.thumbnail((32, 32), Image.Resampling.LANCZOS)
    elif image.size == (5, 20):
        image = image.resize((8, 32), Image.Resampling.BICUBIC)
    elif image.size == (120, 90):
        image = image.resize((60, 45), Image.Resampling.BICUBIC)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(np.array(image)) / 255 - mean) / std).permute(2, 0, 1)[None]


@pytest.mark.parametrize("resize", ["longest", "none"])
def test_images_in_sizes_of_their_own(tmp_path, folder, mixed_images, monkeypatch, resize):
    """Each as by Pillow and the model alone, though those of one size in a batch are computed together."""
    monkeypatch.setattr("modeling_dino.data.evaluation_transform.MAX_OWN_PIXELS", 2700)
    batches, compute = [], FeatureComputer._compute
    monkeypatch.setattr(
        FeatureComputer, "_compute", lambda self, pixels: batches.append(len(pixels)) or compute(self, pixels)
    )
    summary = extract(folder, tmp_path / "out", mixed_images, resize=resize, features="cls,gem")
    assert sorted(batches) == [1] * (5 if resize == "none" else 4) + [2, 3]
    small, large = (str(mixed_images / name) for name in ("6.png", "7.png"))
    if resize == "none":
        assert summary.notes == {
            small: "5 x 20 pixels, resized to 8 x 32: the model needs 8 each way",
            large: "120 x 90 pixels, resized to 60 x 45: more than 2700 are too many",
        }
    else:
        assert summary.notes == {}
        assert summary.skipped == {small: "5 x 20 pixels after resizing: the model needs 8 each way"}
    table = load_features(tmp_path / "out")
    assert table["path"].tolist() == sorted(set(map(str, mixed_images.iterdir())) - set(summary.skipped))
    model = DinoModel.from_pretrained(folder / "model").eval()
    for i, file in enumerate(table["path"]):
        with torch.no_grad():
            expected = image_features(model, pixel_values_by_pil(Path(file), resize), ["cls", "gem"])
        for kind, values in expected.items():
            np.testing.assert_allclose(table[f"feature_{kind}"][i], values[0], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("resize", ["longest", "none"])
def test_sizes_of_their_own_whatever_threads_workers_and_shards_that_are_there(tmp_path, folder, mixed_images, resize):
    extract(folder, tmp_path / "out", mixed_images, resize=resize)
    expected, num_threads = contents(tmp_path / "out"), torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads + 1)
        extract(folder, tmp_path / "threads", mixed_images, resize=resize, num_workers=2)
    finally:
        torch.set_num_threads(num_threads)
    assert contents(tmp_path / "threads") == expected
    (tmp_path / "threads" / "features-000001-000000.parquet").unlink()
    extract(folder, tmp_path / "threads", mixed_images, resize=resize)
    assert contents(tmp_path / "threads") == expected


def test_a_transform_that_is_saved_without_a_crop(tmp_path, folder, mixed_images):
    """The model's own transform may keep the sides' ratio: images then differ in size, too."""
    model = DinoModel.from_pretrained(folder / "model")
    model.image_transform = {**model.image_transform, "do_center_crop": False}
    model.save_pretrained(tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "images": mixed_images}
    assert extract(folder, tmp_path / "out", **options).rows == 10
    with pytest.raises(ValueError, match="patches of images that are not cropped differ in number"):
        extract(folder, tmp_path / "patches", **options, features="patches")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resize", "whole"), "unknown resize 'whole': allowed are crop, square, longest, none"),
        (
            ("--resize", "none", "--image-size", 64),
            "image_size=64 has no use for resize none: leave it out, or choose",
        ),
        (("--resize", "longest", "--image-size", 0), "image_size=0 must be at least 1 pixel"),
        (("--resize", "none", "--features", "cls,patches"), "patches of images that are not cropped differ in number"),
    ],
)
def test_sizes_that_cannot_be(dino, tmp_path, folder, options, message):
    names = ("--model", folder / "model", "--images", folder / "images", "--output", tmp_path / "out")
    code, _, err = dino("extract", *names, *options)
    assert (code, message in err, err.count("\n")) == (2, True, 1), err


def test_facets_beside_other_kinds(tmp_path, folder):
    """Of a model that is prepared for inference, on images that are squashed; the folder is opened and goes on."""
    options = {"features": "cls,keys@1,values@-1", "resize": "square", "image_size": 24}
    extract(folder, tmp_path / "out", **options)
    table = load_features(tmp_path / "out")
    model = DinoModel.from_pretrained(folder / "model").eval()
    processor = load_image_processor(str(folder / "model"), model.config, "square", 24)
    for file, *rows in zip(table["path"], table["feature_keys_1"], table["feature_values_minus_1"], strict=True):
        pixel_values = processor(Image.open(file), return_tensors="pt")["pixel_values"]
        for (facet, layer), row in zip((("key", 1), ("value", 2)), rows):
            with torch.no_grad():
                facets = model.get_facets(pixel_values, facet, layer)[0, :, 1:]  # (heads, h * w, d)
            np.testing.assert_allclose(row, facets.transpose(0, 1).flatten(1), rtol=0, atol=1e-5)
    assert extract(folder, tmp_path / "out", **options).computed == 0
    with pytest.raises(ValueError, match="patches of images that are not cropped differ in number"):
        extract(folder, tmp_path / "longest", resize="longest", features="cls,keys@1")


def test_several_kinds_in_one_pass(tmp_path, folder, monkeypatch):
    """As each alone, by as many passes through the model as one alone takes."""
    passes = []
    forward = VisionTransformer.embed
    monkeypatch.setattr(VisionTransformer, "embed", lambda *args: passes.append(0) or forward(*args))
    kinds = ("cls", "patch_mean", "patches")
    extract(folder, tmp_path / "all", features=", ".join(kinds), last_blocks=2)
    together = load_features(tmp_path / "all")
    assert list(together) == ["path", *(f"feature_{kind}" for kind in kinds)]
    num_passes = len(passes)
    for kind in kinds:
        passes.clear()
        extract(folder, tmp_path / kind, features=kind, last_blocks=2)
        assert len(passes) == num_passes
        alone = load_features(tmp_path / kind)["feature"]  # of CLS tokens by less work, with other rounding
        np.testing.assert_allclose(together[f"feature_{kind}"], alone, rtol=0, atol=1e-5 if kind == "cls" else 0)


def write_sources(folder: Path, output: Path) -> dict[str, dict]:
    """The images of the folder in every kind of source; options of `extract` by name."""
    files = sorted((folder / "images").iterdir())
    with tarfile.open(output / "images.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    images = datasets.Features({"image": datasets.Image()})
    rows = [{"bytes": file.read_bytes(), "path": None} for file in files]
    data = datasets.Dataset.from_dict({"image": rows}, features=images)
    data.to_parquet(output / "images.parquet")
    data.save_to_disk(output / "saved")
    (output / "list.txt").write_text("\n".join(map(str, files)))
    (output / "repository").mkdir()
    shutil.copy(output / "images.parquet", output / "repository" / "train.parquet")
    return {
        "pattern": {"images": folder / "images" / "*.png"},
        "list": {"images": output / "list.txt"},
        "tar": {"images": output / "images.tar"},
        "parquet": {"images": output / "images.parquet"},
        "saved": {"images": output / "saved"},
        "streamed": {"images": output / "repository", "streaming": True},
    }


@pytest.mark.usefixtures("small_shards")
def test_the_same_features_from_every_source(tmp_path, folder):
    extract(folder, tmp_path / "out")
    expected = load_features(tmp_path / "out")["feature"]
    for name, options in write_sources(folder, tmp_path).items():
        extract(folder, tmp_path / f"{name}-out", **options)
        features = load_features(tmp_path / f"{name}-out")["feature"]
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5, err_msg=name)  # streamed in other batches


def test_on_a_cpu_large_batches_are_computed_in_small_ones(tmp_path, folder, monkeypatch):
    sizes, forward = [], VisionTransformer.pooled_stages

    def noted(self, pixel_values, *args, **options):
        sizes.append((pixel_values.device.type, len(pixel_values)))
        return forward(self, pixel_values, *args, **options)

    monkeypatch.setattr(VisionTransformer, "pooled_stages", noted)
    assert extract(folder, tmp_path / "out", batch_size=100).rows == 11
    assert sorted(sizes) == [("cpu", 3), ("cpu", 8), ("meta", 1)]


@pytest.mark.slow
def test_less_memory_than_a_batch_takes(tmp_path, folder, monkeypatch):
    """Batches are halved until they fit; one that cannot be is an error that says so."""
    sizes, room = [], 3

    def within_memory(self, pixel_values, *args, **options):
        sizes.append(len(pixel_values))
        if len(pixel_values) > room and pixel_values.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, pixel_values, *args, **options)

    forward = VisionTransformer.pooled_stages
    monkeypatch.setattr("modeling_dino.extraction.options.CPU_BATCH", 32)
    extract(folder, tmp_path / "whole")
    monkeypatch.setattr(VisionTransformer, "pooled_stages", within_memory)
    extract(folder, tmp_path / "out")
    assert sizes == [1, 11, 5, 2, 2, 2, 2, 2, 1]  # the first for the shape of the features
    expected = load_features(tmp_path / "whole")["feature"]
    np.testing.assert_allclose(load_features(tmp_path / "out")["feature"], expected, rtol=0, atol=1e-5)
    room = 0
    with pytest.raises(ValueError, match="one image is too large for the memory of cpu"):
        extract(folder, tmp_path / "none")


@pytest.mark.usefixtures("small_shards")
def test_other_libraries_read_the_shards(tmp_path, folder):
    extract(folder, tmp_path / "out")
    table = load_features(tmp_path / "out")
    files = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    assert len(files) == 3
    frame = pd.concat(map(pd.read_parquet, files))
    np.testing.assert_array_equal(np.stack(frame["feature"]), table["feature"])
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert data.features["feature"].length == 32
    np.testing.assert_array_equal(np.array(data.with_format("numpy")["feature"]), table["feature"])
    assert data["path"][:] == frame["path"].tolist() == table["path"].tolist()
    frame = polars.read_parquet(tmp_path / "out" / "*.parquet")
    np.testing.assert_array_equal(frame["feature"].to_numpy(), table["feature"])
    columns = duckdb.sql(f"select * from '{tmp_path / 'out' / '*.parquet'}'").fetchnumpy()
    np.testing.assert_array_equal(np.stack(columns["feature"]), table["feature"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_stored_in_float32(tmp_path, folder, dtype):
    extract(folder, tmp_path / "full")
    extract(folder, tmp_path / "half", dtype=dtype)
    full, half = (load_features(tmp_path / name)["feature"] for name in ("full", "half"))
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


COMPILED = """
import functools, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")  # test_modeling_dino.py waits for the compiler
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.options import ExtractionSettings, ExtractOptions
options = {{"model": {model!r}, "images": {images!r}, "output": "compiled", "batch_size": 11}}
extract_features(ExtractOptions(**options, compile=True, progress=False))
"""


@pytest.mark.slow
def test_compiled(tmp_path, folder):
    """In a process of its own, as torch 2.11 without a GPU cannot train where a thread that compiled has ended."""
    extract(folder, tmp_path / "plain", batch_size=11)
    run_python(COMPILED.format(model=str(folder / "model"), images=str(folder / "images")), tmp_path)
    plain, compiled = (load_features(tmp_path / name)["feature"] for name in ("plain", "compiled"))
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-5)


def test_labels_come_from_sub_folders(tmp_path, folder):
    for i, name in enumerate(("dog", "cat", "cat")):
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images" / f"{i:02d}.png", tmp_path / "classes" / name)
    extract(folder, tmp_path / "out", images=tmp_path / "classes")
    assert load_features(tmp_path / "out")["label"].tolist() == ["cat", "cat", "dog"]


def test_a_resnet(tmp_path, folder):
    DinoModel(tiny_config("resnet")).save_pretrained(tmp_path / "resnet")
    extract(folder, tmp_path / "out", model=str(tmp_path / "resnet"))
    assert load_features(tmp_path / "out")["feature"].shape == (NUM_IMAGES, 64)


@pytest.mark.slow
def test_models_of_other_libraries(tmp_path, folder):
    """Their own image processors, which squash or crop less, are left aside."""
    timm.models.save_for_hf(timm.create_model("resnet18", num_classes=0), tmp_path / "timm")
    vit = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8))
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    for name, width in (("timm", 512), ("vit", 32)):
        extract(folder, tmp_path / f"{name}-out", model=str(tmp_path / name))
        features = load_features(tmp_path / f"{name}-out")["feature"]
        assert features.shape == (NUM_IMAGES, width)
        DinoModel.from_pretrained(tmp_path / name).save_pretrained(tmp_path / f"{name}-ours")
        extract(folder, tmp_path / f"{name}-ours-out", model=str(tmp_path / f"{name}-ours"))
        np.testing.assert_array_equal(load_features(tmp_path / f"{name}-ours-out")["feature"], features)


@pytest.mark.usefixtures("small_shards")
def test_a_stopped_run_goes_on_and_ends_the_same(tmp_path, folder, monkeypatch):
    extract(folder, tmp_path / "whole")
    write = feature_files.FeatureFolder.write_shard

    def stop_in_the_second_shard(self, shard, *arguments):
        if shard == 1:
            (self.path / ".features-000001.parquet.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        write(self, shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(feature_files.FeatureFolder, "write_shard", stop_in_the_second_shard)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="is not complete: run the same"):
        load_features(tmp_path / "out")
    summary = extract(folder, tmp_path / "out")
    assert (summary.rows, summary.computed) == (NUM_IMAGES, NUM_IMAGES - 4)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert extract(folder, tmp_path / "out").computed == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_features_of_other_settings_are_kept_unless_told_otherwise(tmp_path, folder):
    output = tmp_path / "out"
    extract(folder, output)
    before = contents(output)
    for options, difference in (
        ({"features": "patches"}, "features: cls -> patches"),
        ({"dtype": "bfloat16"}, "dtype: float32 -> bfloat16"),
        ({"images": folder / "images" / "00.png"}, "images: "),
    ):
        with pytest.raises(ValueError, match=f"has features of other settings, {difference}"):
            extract(folder, output, **options)
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(output, tmp_path / "copy" / "out")
    assert contents(output) == before
    extract(folder, output, features="patches", overwrite=True)
    assert load_features(output)["feature"].shape == (NUM_IMAGES, 16, 32)


@pytest.mark.usefixtures("small_shards")
def test_overwriting_that_was_stopped_leaves_no_old_features(tmp_path, folder, monkeypatch):
    extract(folder, tmp_path / "out")
    extract(folder, tmp_path / "new", dtype="bfloat16")
    unlink = Path.unlink

    def stop_at_the_second_shard(self, **options):
        if self.name == "features-000001-000000.parquet":
            raise KeyboardInterrupt
        unlink(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop_at_the_second_shard)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, tmp_path / "out", dtype="bfloat16", overwrite=True)
    with pytest.raises(ValueError, match="is not complete"):
        load_features(tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite"):
        extract(folder, tmp_path / "out", dtype="bfloat16")
    extract(folder, tmp_path / "out", dtype="bfloat16", overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_a_changed_model_or_image_is_noticed(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "here")
    here = tmp_path / "here"
    extract(here, here / "out")
    model = DinoModel.from_pretrained(here / "model")
    with torch.no_grad():
        model.backbone.norm.bias += 1e-3
    model.save_pretrained(here / "model")
    with pytest.raises(ValueError, match="model_fingerprint: "):
        extract(here, here / "out")
    shutil.copy(folder / "model" / "model.safetensors", here / "model")
    assert extract(here, here / "out").computed == 0
    Image.new("RGB", (100, 90)).save(here / "images" / "00.png")
    with pytest.raises(ValueError, match="images_fingerprint: "):
        extract(here, here / "out")


def test_a_run_killed_while_it_began_goes_on(tmp_path, folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.json.partial").write_text("{")
    assert extract(folder, tmp_path / "out").computed == NUM_IMAGES


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_is_left_alone(tmp_path, folder, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something other than features"):
        extract(folder, tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file: choose another output folder"):
        extract(folder, tmp_path / "thesis.txt", overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_of_two_extractions_into_one_folder_the_second_is_refused(tmp_path, folder):
    output = tmp_path / "out"
    with one_writer(output), pytest.raises(ValueError, match=r"another process writes to .*out"):
        extract(folder, output)
    assert extract(folder, output).computed == NUM_IMAGES


@pytest.mark.usefixtures("small_shards")
def test_a_run_that_goes_on_computes_what_is_missing_and_refuses_what_is_damaged(tmp_path, folder):
    output = tmp_path / "out"
    extract(folder, output)
    before = contents(output)
    shards = sorted(output.glob("*.parquet"))
    shards[1].unlink()
    assert extract(folder, output).computed == 4
    assert contents(output) == before
    shards[1].write_bytes(before[shards[1].name][:-50])
    with pytest.raises(ValueError, match=r"features-000001-000000.parquet is damaged .*: remove it, and run"):
        extract(folder, output)
    shards[1].unlink()
    shutil.copy(shards[0], output / "features-000009-000000.parquet")
    with pytest.raises(ValueError, match=r"features-000009-000000.parquet is damaged .*it is not in the manifest"):
        extract(folder, output)
    (output / "manifest.json").write_text((output / "manifest.json").read_text().replace('"shards"', '"older"'))
    with pytest.raises(ValueError, match=r"features-000009-000000.parquet is damaged .*it is none of this run"):
        extract(folder, output)
    (output / "features-000009-000000.parquet").unlink()
    extract(folder, output)
    assert contents(output) == before
    extract(folder, output, features="patches", overwrite=True)


@pytest.mark.parametrize(
    ("scale", "dtype", "says"),
    [
        (3e38, "float32", "the model's weights or its image transform are damaged$"),
        (6e4, "float16", ".* damaged, or float16 overflows: use float32 or bfloat16$"),
    ],
)
def test_features_that_are_not_finite_are_never_written(tmp_path, folder, scale, dtype, says):
    """The first image that has one is named, and nothing is left behind; large numbers suit bfloat16."""
    model = DinoModel.from_pretrained(folder / "model")
    with torch.no_grad():
        model.backbone.norm.weight *= scale
    model.save_pretrained(tmp_path / "model")
    images = folder / "images"
    with pytest.raises(ValueError, match=rf"^the feature of .*00\.png is not finite: {says}"):
        extract(tmp_path, tmp_path / "out", images, dtype=dtype)
    assert not (tmp_path / "out").exists()
    if dtype == "float16":
        assert extract(tmp_path, tmp_path / "out", images, dtype="bfloat16").rows == NUM_IMAGES


@pytest.fixture
def spoiled(tmp_path, folder) -> Path:
    """The images, of which two cannot be read, and a model."""
    shutil.copytree(folder, tmp_path / "spoiled")
    images = tmp_path / "spoiled" / "images"
    (images / "03.png").write_bytes((images / "03.png").read_bytes()[:200])
    (images / "07.png").write_text("not an image")
    return tmp_path / "spoiled"


@pytest.mark.usefixtures("small_shards")
def test_unreadable_images_are_skipped_named_and_counted(tmp_path, spoiled):
    summary = extract(spoiled, tmp_path / "out")
    assert summary.rows == NUM_IMAGES - 2
    assert [Path(path).name for path in summary.skipped] == ["03.png", "07.png"]
    assert "2 skipped" in str(summary)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped"] == summary.skipped
    assert "no image in a known format" in manifest["skipped"][str(spoiled / "images" / "07.png")]
    table = load_features(tmp_path / "out")
    good = [file for file in sorted((spoiled / "images").iterdir()) if file.name not in ("03.png", "07.png")]
    assert table["path"].tolist() == list(map(str, good))
    np.testing.assert_allclose(table["feature"], expected_features(spoiled, good), rtol=0, atol=1e-5)


def test_unreadable_images_fail_the_run_if_asked(tmp_path, spoiled):
    with pytest.raises(ValueError, match=r"cannot read .*03.png: .*--on-error skip"):
        extract(spoiled, tmp_path / "out", on_error="fail")


@pytest.mark.parametrize("existed", [False, True])
def test_nothing_but_unreadable_images_leaves_nothing_behind(tmp_path, spoiled, existed):
    if existed:
        (tmp_path / "out").mkdir()
    (tmp_path / "list.txt").write_text("\n".join(str(spoiled / "images" / name) for name in ("07.png", "03.png")))
    for images, says in (
        ("images/07.png", r"cannot read .*07.png: no image in a known format"),
        (tmp_path / "list.txt", r"none of the 2 images can be read; the first: .*07.png"),
    ):
        with pytest.raises(ValueError, match=says):
            extract(spoiled, tmp_path / "out", images=images)
        assert [path.name for path in tmp_path.glob("out*")] == ["out"] * existed
        assert not existed or contents(tmp_path / "out") == {".lock": b""}


def test_no_images_at_all(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name in ("empty", "empty.txt", "empty.tar"):
        with pytest.raises(ValueError, match=rf"{name}(: no images there|: .*no image| has no images)"):
            extract(folder, tmp_path / "out", images=tmp_path / name)
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_mode_of_photographs(tmp_path, folder):
    files = sorted(save_variants(tmp_path / "photographs"))
    summary = extract(folder, tmp_path / "out", images=tmp_path / "photographs")
    assert summary.rows == 20
    assert [Path(path).name for path in summary.notes] == ["sixteen-bit.png"]
    features = load_features(tmp_path / "out")["feature"]
    np.testing.assert_allclose(features, expected_features(folder, files), rtol=0, atol=1e-5)


def test_any_name_a_file_can_have(tmp_path, folder):
    names = [
        "with space.png",
        "quote'\"s.png",
        "new\nline.png",
        "ünïcode-写真.PNG",
        "a,b;c.png",
        os.fsdecode(b"bytes-\xff.png"),
    ]
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(folder / "images" / "00.png", tmp_path / "images" / name)
    (tmp_path / "images" / os.fsdecode(b"bad-\xfe.png")).write_text("not an image")
    summary = extract(folder, tmp_path / "out", images=tmp_path / "images")
    assert [Path(path).name for path in summary.skipped] == ["bad-\\xfe.png"]
    table = load_features(tmp_path / "out")
    assert {Path(path).name for path in table["path"]} == {*names[:-1], "bytes-\\xff.png"}
    np.testing.assert_allclose(table["feature"], table["feature"][[0] * len(names)], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "class"}, "unknown features 'class'"),
        ({"dtype": "float8"}, "unknown dtype 'float8': allowed are float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore': allowed are skip, fail"),
        ({"model": "dino_vits16"}, "dino_vits16 is a configuration without weights"),
        ({"images": "nothing"}, "is neither a folder"),
    ],
)
def test_arguments_that_cannot_work_leave_nothing_behind(tmp_path, folder, options, message):
    with pytest.raises(ValueError, match=message):
        extract(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_load_features_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="holds something other than features"):
        load_features(tmp_path)
