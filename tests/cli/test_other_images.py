"""Images that are not 8-bit RGB, from one end to the other: satellites', microscopes', radiology's."""

import json
import re

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_config
from torchvision.transforms import v2

from modeling_dino import DinoModel, load_features
from modeling_dino.data.frames import open_frames
from modeling_dino.data.image_values import as_picture


pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
MEAN, STD, FACTOR = [0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.1, 0.2, 0.1, 0.2], 1e-4
KINDS = {"a": 2000, "b": 6000}  # classes: what their reflectances are about


def save_model(folder, num_channels: int = 5, factor: float = FACTOR, mean=MEAN, std=STD) -> DinoModel:
    torch.manual_seed(0)
    model = DinoModel(tiny_config(num_channels=num_channels, projection_dim=16))
    model.save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    own = {"rescale_factor": factor, "image_mean": mean, "image_std": std}
    file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    return model.eval()


def scene(level: int, size=(40, 48), bands: int = 5) -> np.ndarray:
    """Reflectances of five bands, (H, W, C), as a satellite measures them; 10,000 is white."""
    values = RNG.normal(level, level / 4, (*size, bands)).clip(0, 12000)
    return values.astype(np.uint16)


def save_scene(file, values: np.ndarray):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, values)
    else:
        tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a `model` of five bands, and `scenes` of two classes."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    for kind, level in KINDS.items():
        for i in range(4):
            save_scene(tmp_path / "scenes" / kind / f"{i}.tif", scene(level))
    return tmp_path


def features_of(model: DinoModel, values: np.ndarray) -> np.ndarray:
    """Features by torchvision's resizing."""
    pixels = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) * FACTOR
    pixels = v2.functional.resize(pixels, [36], v2.InterpolationMode.BICUBIC, antialias=True)
    pixels = v2.functional.center_crop(pixels, [32, 32])
    with torch.no_grad():
        return model(v2.functional.normalize(pixels, MEAN, STD)[None]).pooler_output[0].numpy()


def test_extract_gives_the_features_of_the_values_as_they_are_stored(dino, folder):
    values = scene(3000, (40, 61))
    for name in ("whole.tif", "whole.npy"):
        save_scene(folder / "pair" / name.replace(".", "-") / name, values)
    for images in ("pair/whole-tif", "pair/whole-npy", "pair/whole-npy/whole.npy"):
        output = images.replace("/", "-")
        code, _, err = dino("extract", "--model", "model", "--images", images, "--output", output)
        assert (code, err.count("note")) == (0, 0), err
        found = load_features(output)["feature"][0]
        np.testing.assert_allclose(found, features_of(DinoModel.from_pretrained("model").eval(), values), atol=2e-4)


def test_extract_names_the_numbers_of_channels(dino, folder):
    Image.new("RGB", (40, 40)).save(folder / "scenes" / "a" / "rgb.png")
    save_scene(folder / "scenes" / "a" / "seven.tif", scene(2000, bands=7))
    code, _, err = dino("extract", "--model", "model", "--images", "scenes", "--output", "out")
    assert code == 0
    assert "skipped scenes/a/rgb.png: 3 channels, but the model takes 5" in err
    assert "skipped scenes/a/seven.tif: 7 channels, but the model takes 5" in err
    assert len(load_features("out")["feature"]) == 8


def test_knn_linear_and_finetune(dino, folder):
    for command in ("knn", "linear", "finetune"):
        output = [] if command == "knn" else ["--output", command]
        options = ["--k", "1"] if command == "knn" else ["--epochs", "2"]
        arguments = ["--model", "model", "--train", "scenes", "--test", "scenes"]
        code, _, err = dino(command, *arguments, *output, *options)
        assert code == 0, (command, err)
    written = json.loads((folder / "finetune" / "preprocessor_config.json").read_text())
    assert (written["rescale_factor"], written["image_mean"]) == (FACTOR, MEAN)


def test_pictures_show_the_bands_that_are_asked_for(dino, folder):
    values = scene(3000, (32, 48))
    values[8:24, 8:24, 2] = 9000  # a red square, as the third band is red
    save_scene(folder / "one.tif", values)
    for bands, square in (("3,2,1", (255, 0, 0)), ("1,2,3", (0, 0, 255)), ("3", (255, 255, 255))):
        arguments = ["--model", "model", "--images", "one.tif", "--size", "32", "--overwrite", "--bands", bands]
        code, _, err = dino("attention", *arguments, "--output", "seen", "--save-arrays", "safetensors")
        assert code == 0, err
        with Image.open(folder / "seen" / "one-attention.png") as picture:
            red, green, blue = np.asarray(picture.convert("RGB"))[24 + 8 + 16, 8 + 16].tolist()  # within the square
        shown = np.array([red, green, blue])
        assert (shown[np.array(square) == 255] > 240).all(), (bands, shown)
    attention = load_file(folder / "seen" / "one-attention.safetensors")["attention"]
    model = DinoModel.from_pretrained("model").eval()
    pixels = (torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) * FACTOR)[None]
    with torch.no_grad():
        expected = model.get_cls_attention(v2.functional.normalize(pixels, MEAN, STD))[0]
    torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-4)
    assert dino("pca", *arguments, "--output", "painted")[0] == 0
    for bands in ("3,2", "0", "6", "1,2,6"):
        code, _, err = dino("pca", *arguments[:-1], bands, "--output", "painted")
        assert (code, f"bands={bands} must be one number or three, from 1 to 5, the model's channels" in err) == (
            2,
            True,
        )


def test_bands_of_photographs_change_places(dino, folder):
    save_model(folder / "rgb", 3, 1 / 255, MEAN[:3], STD[:3])
    Image.new("RGB", (32, 32), (200, 100, 0)).save(folder / "one.png")
    arguments = ["--model", "rgb", "--images", "one.png", "--size", "32", "--bands", "3,2,1", "--output", "seen"]
    assert dino("attention", *arguments)[0] == 0
    with Image.open(folder / "seen" / "one-attention.png") as picture:
        assert picture.convert("RGB").getpixel((20, 40)) == (0, 100, 200)


def test_segment_and_a_microscope_of_sixteen_bits(dino, folder):
    save_model(folder / "grey", 1, 1 / 65535, [0.2], [0.1])
    (folder / "frames").mkdir()
    for i in range(3):
        values = RNG.integers(0, 20000, (48, 64), np.uint16)
        values[8:40, 8 + 4 * i : 40 + 4 * i] += 30000
        Image.fromarray(values).save(folder / "frames" / f"{i}.png")
    mask = Image.new("P", (64, 48))
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.paste(1, (8, 8, 40, 40))
    mask.save(folder / "mask.png")
    arguments = ["--model", "grey", "--video", "frames", "--mask", "mask.png", "--size", "48", "--overlay"]
    code, out, err = dino("segment", *arguments, "--output", "masks")
    assert code == 0, err
    assert out.startswith("1 objects in 3 frames")


def test_frames_are_arrays_and_pictures_of_them_are_stretched(folder):
    (frame, *_) = open_frames("scenes", 5, 32, rescale_factor=FACTOR)
    assert (frame.image.dtype, frame.image.shape) == (np.float32, (40, 48, 5))
    picture = np.asarray(as_picture(frame.image, (5, 1, 2)))
    low, high = np.percentile(frame.image[..., 4], (2, 98))
    expected = ((frame.image[..., 4] - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(picture[..., 0] - expected).max() <= 0.51
    assert as_picture(frame.image[..., :2]).mode == "L"
    flat = as_picture(np.full((4, 4, 1), 7, np.float32))
    assert flat.getextrema() == (0, 0)


def test_the_report_and_contact_sheets_show_them(dino, folder):
    assert dino("extract", "--model", "model", "--images", "scenes", "--output", "features")[0] == 0
    code, _, err = dino("report", "features", "--output", "report.html")
    assert code == 0, err
    assert "skipped" not in err
    code, _, err = dino("retrieve", "--index", "features", "--sheet", "sheet.png", "--top", "2")
    assert code == 0, err
    with Image.open(folder / "sheet.png") as sheet:
        assert np.asarray(sheet.convert("L"))[12:120, 12:120].std() > 20


def test_pretraining_on_bands_and_from_a_model_of_them(dino, folder):
    sizes = "model.backbone=vit_tiny model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=4"
    sizes += " model.patch_size=8 model.image_size=32 model.projection_dim=16 model.num_channels=5"
    crops = "crops.global_crop_size=32 crops.local_crop_size=16 crops.num_local_crops=2"
    steps = "training.max_steps=2 batch_size=4"
    stated = f"image_mean={json.dumps(MEAN)} image_std={json.dumps(STD)} rescale_factor={FACTOR}"
    arguments = ["--data", "scenes", "--num-workers", "0"]
    new = [*sizes.split(), *crops.split(), *steps.split(), *re.findall(r"\S+=(?:\[.*?\]|\S+)", stated)]
    code, out, err = dino("pretrain", "small_data", *new, *arguments, "--output", "run", "--eval-knn", "scenes")
    assert code == 0, err
    assert "images could not be read" not in out
    written = json.loads((folder / "run" / "preprocessor_config.json").read_text())
    assert [written[name] for name in ("image_mean", "image_std", "rescale_factor")] == [MEAN, STD, FACTOR]
    further = [*sizes.split(), *crops.split(), *steps.split(), "--from", "run", *arguments, "--output", "further"]
    code, out, err = dino("pretrain", "small_data", *further)
    assert code == 0, err
    written = json.loads((folder / "further" / "preprocessor_config.json").read_text())
    assert [written[name] for name in ("image_mean", "image_std", "rescale_factor")] == [MEAN, STD, FACTOR]
