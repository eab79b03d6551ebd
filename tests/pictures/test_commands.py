"""`dino attention`, `dino pca` and `dino segment` as they are called."""

import json

import numpy as np
import pytest
import torch
from clips import save_clip
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.data.video import Video
from modeling_dino.pictures.patch_images import PatchTransform


pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a `vit`, a `resnet`, `images` in two folders, a `video.mp4` and a `mask.png`."""
    monkeypatch.chdir(tmp_path)
    for family in ("vit", "resnet"):
        DinoModel(tiny_config(family, head_type=None)).save_pretrained(family)
    for name, size in (("a/1.png", (50, 40)), ("a/2.jpg", (50, 40)), ("b/1.png", (40, 60))):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise(size, 90).convert("RGB").save(path)
    save_clip(tmp_path, num_frames=3)
    return tmp_path


KINDS = ["attention", *(f"head{i}" for i in range(4)), "heads", *(f"mask{i}" for i in range(4)), "masks"]


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_attention_to_a_folder(dino, folder, suffix):
    (folder / "images" / "a" / "3.png").write_text("no image")
    arguments = "attention --model vit --images images --output out --size 32 --mass 0.6"
    code, out, err = dino(*arguments.split(), "--save-arrays", suffix)
    assert code == 0
    assert out.startswith("36 files of 3 images, 1 skipped; all heads: out/b/1-attention.png")
    assert "skipped images/a/3.png: no image in a known format" in err
    files = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.*"))
    made = [f"{name}-{kind}.png" for name in ("a/1", "a/2", "b/1") for kind in KINDS]
    assert files == sorted([*made, *(f"{name}-attention.{suffix}" for name in ("a/1", "a/2", "b/1"))])
    transform = PatchTransform(8, MEAN, STD, 32)
    pixel_values = transform.pixel_values(transform.crop(Image.open(folder / "images" / "b" / "1.png")))
    with torch.no_grad():
        expected = DinoModel.from_pretrained("vit").eval().get_cls_attention(pixel_values)[0]
    saved = folder / "out" / "b" / f"1-attention.{suffix}"
    found = torch.from_numpy(np.load(saved)) if suffix == "npy" else load_file(saved)["attention"]
    torch.testing.assert_close(found, expected)


def test_attention_to_a_video(dino, folder):
    arguments = "attention --model vit --images video.mp4 --output out --size 32 --mass 0.5"
    assert dino(*arguments.split(), "--save-arrays", "npy")[0] == 0
    videos = [f"video-{kind}.mp4" for kind in ("attention", "heads", "masks")]
    arrays = [f"0000{i}-attention.npy" for i in range(3)]
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted([*arrays, *videos])
    for name in videos:
        video = Video(folder / "out" / name)
        assert (video.num_frames, video.fps) == (3, 10)
    assert next(iter(Video(folder / "out" / "video-heads.mp4"))).size == (40, 32)


def test_a_video_of_images(dino, folder):
    for command in ("attention", "pca"):
        arguments = f"{command} --model vit --images images/a --output out --size 32 --fps 5 --overwrite"
        assert dino(*arguments.split())[0] == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a-attention.mp4", "a-heads.mp4", "a-pca.mp4"]
    assert Video(folder / "out" / "a-pca.mp4").fps == 5


def test_pca(dino, folder):
    arguments = "pca --model vit --images images --output out --size 64 --no-split --save-arrays"
    code, out, _ = dino(*arguments.split())
    assert code == 0
    assert out.startswith("3 images, all patches painted, three components with ")
    files = sorted(str(path.relative_to(folder / "out")) for path in (folder / "out").rglob("*.*"))
    assert files == ["a/1-pca.png", "a/2-pca.png", "b/1-pca.png", "components.safetensors", "overview.png"]


def test_segment(dino, folder):
    arguments = "segment --model vit --video video.mp4 --mask mask.png --output out --size 48 --overlay --fps 2"
    code, out, _ = dino(*arguments.split())
    assert code == 0
    assert out.strip() == "1 objects in 3 frames -> out"
    names = ["00000.png", "00001.png", "00002.png"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == [*names, "overlay.mp4"]
    assert Video(folder / "out" / "overlay.mp4").fps == 2
    (folder / "truth").mkdir()
    for name in names:
        (folder / "out" / name).rename(folder / "truth" / name)
    code, out, _ = dino(*arguments.split(), "--overwrite", "--ground-truth", "truth", "--record")
    assert code == 0
    assert "J&F 100.0, J mean 100.0, J recall 100.0, J decay 0.0, F mean 100.0" in out
    results = json.loads((folder / "vit" / "evaluation_results.json").read_text())
    assert [result["dataset"] for result in results] == ["video"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("attention --model resnet --images images", "resnet50 has no attention: use a ViT"),
        ("attention --model vit --images text.mp4", "cannot read text.mp4: Invalid data"),
        ("attention --model vit --images empty", "empty: no images there"),
        ("attention --model vit --images nothing", "nothing is neither a folder, nor an image"),
        ("attention --model vit --images images --size 7", "size=7 must be at least one patch of 8 pixels"),
        ("attention --model vit --images images --layer 3", "vit_tiny has layers 0 to 2"),
        ("attention --model vit --images images --mass 0", "mass=0.0 must be above 0 and at most 1"),
        ("attention --model vit --images images --mass 1.5", "mass=1.5 must be above 0 and at most 1"),
        ("attention --model vit --images images --save-arrays csv", "unknown save_arrays 'csv'"),
        ("attention --model vit --images images --on-error ask", "unknown on_error 'ask'"),
        ("attention --model vit --images images --fps 0", "fps=0.0 must be above 0"),
        ("attention --model vit --images images --fps 5", "frames of different sizes make no video"),
        ("pca --model resnet --images images", "resnet50 has no patch tokens: use a ViT"),
        ("pca --model vit --images text.mp4", "cannot read text.mp4: Invalid data"),
        ("pca --model vit --images images --size 7", "size=7 must be at least one patch of 8 pixels"),
        ("segment --model vit --video video.mp4 --mask mask.png --size 7", "size=7 must be at least one patch"),
        ("segment --model vit --video video.mp4 --mask mask.png --top-k 0", "top_k=0 must be at least 1"),
        ("segment --model vit --video images --mask mask.png", "has 50 x 40 pixels, the mask 64 x 48"),
        ("segment --model vit --video text.mp4 --mask mask.png", "cannot read text.mp4: Invalid data"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(dino, folder, arguments, message):
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("no video")
    code, _, err = dino(*arguments.split(), "--output", "out")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("dino: ")]) == 1
    assert not [path for path in folder.glob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("command", ["attention --images images", "pca --images images", "segment --video video.mp4"])
def test_an_output_that_exists_is_refused(dino, folder, command):
    mask = ["--mask", "mask.png"] if command.startswith("segment") else []
    code, _, err = dino(*command.split(), *mask, "--model", "vit", "--output", "images")
    assert code == 2
    assert err.strip().endswith("images is not empty: name a new folder, or pass --overwrite")
    code, _, err = dino(*command.split(), *mask, "--model", "vit", "--output", "mask.png", "--overwrite")
    assert code == 2
    assert "mask.png is a file: name a folder" in err
