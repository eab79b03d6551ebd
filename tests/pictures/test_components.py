import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.data.video import Video, write_video
from modeling_dino.extraction.principal_components import Moments
from modeling_dino.pictures import components
from modeling_dino.pictures.components import draw_pca, patch_tokens, variance_between
from modeling_dino.pictures.options import PcaOptions
from modeling_dino.pictures.patch_images import RANDOM_WEIGHTS, PatchTransform, mosaic


pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = 64
TRANSFORM = PatchTransform(8, MEAN, STD, SIZE)


@pytest.fixture
def folder(tmp_path):
    """A folder with a `model` and three `images`."""
    DinoModel(tiny_config(head_type=None, num_attention_heads=2)).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for i, size in enumerate([(64, 64), (96, 64), (50, 70)]):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def paint(folder, model="model", images="images", output="out", size=SIZE, **options):
    paths = {"model": folder / model, "images": folder / images, "output": folder / output}
    paths = {name: str(path) for name, path in paths.items()}
    return draw_pca(PcaOptions(**paths, size=size, progress=False, **options))


def tokens_and_attention(folder) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each image: (h, w, D) and (h, w), through the model's public methods."""
    model = DinoModel.from_pretrained(folder / "model").eval()
    tokens, attention = [], []
    for i in range(3):
        image = Image.open(folder / "images" / f"{i}.png").convert("RGB")
        pixel_values = TRANSFORM.pixel_values(TRANSFORM.crop(image))
        with torch.no_grad():
            (patches,) = model.get_intermediate_layers(pixel_values, reshape=True)
            attention.append(model.get_cls_attention(pixel_values)[0].mean(0).double().numpy())
        tokens.append(patches[0].permute(1, 2, 0).double().numpy())
    return tokens, attention


def sign(components: np.ndarray) -> np.ndarray:
    return np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])


def enlarged(values: np.ndarray) -> np.ndarray:
    """Bicubic, from patches to pixels: (h, w, C) -> (H, W, C)."""
    maps = torch.from_numpy(values).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(maps, scale_factor=8, mode="bicubic")[0].permute(1, 2, 0).numpy()


def expected_pictures(folder) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Colors (H, W, 3) and foregrounds (h, w) by scikit-learn, with all patches in memory."""
    tokens, attention = tokens_and_attention(folder)
    stacked = np.concatenate([image.reshape(-1, image.shape[-1]) for image in tokens])
    first = PCA(1, svd_solver="full").fit(stacked)
    values = [first.transform(image.reshape(-1, image.shape[-1])).reshape(image.shape[:2]) for image in tokens]
    preferred = sum(((cls - cls.mean()) * value).sum() for cls, value in zip(attention, values))
    foregrounds = [value * np.sign(preferred) > 0 for value in values]
    colors = PCA(3, svd_solver="full", whiten=True)
    colors.fit(np.concatenate([image[foreground] for image, foreground in zip(tokens, foregrounds)]))
    painted = []
    for image, value in zip(tokens, values):
        whitened = colors.transform(image.reshape(-1, image.shape[-1])) * sign(colors.components_)
        squashed = 1 / (1 + np.exp(-1.5 * enlarged(whitened.reshape(*image.shape[:2], 3))))
        painted.append(squashed * (enlarged(value[..., None] * np.sign(preferred)) > 0))
    return painted, foregrounds


@pytest.mark.parametrize("memory", [2**30, 0])
def test_colors_are_those_of_scikit_learn(folder, monkeypatch, memory):
    monkeypatch.setattr(components, "TOKENS_IN_MEMORY", memory)
    summary = paint(folder, split=True)
    colors, foregrounds = expected_pictures(folder)
    for i, expected in enumerate(colors):
        painted = np.asarray(Image.open(folder / "out" / f"{i}-pca.png"))
        assert painted.shape == expected.shape
        is_off = np.abs(painted - expected * 255).max(-1) > 0.6
        assert is_off.mean() < 1e-3  # but for pixels at the border of the foreground
    share = np.concatenate([foreground.flatten() for foreground in foregrounds]).mean()
    assert summary.foreground == pytest.approx(share)
    assert 0.05 < share < 0.95
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        *(f"{i}-pca.png" for i in range(3)),
        "overview.png",
    ]
    assert f"3 images, {share:.0%} of the patches in the foreground" in str(summary)


def test_all_patches_and_the_components(folder):
    summary = paint(folder, split=False, save_arrays=True)
    stacked = np.concatenate([image.reshape(-1, 32) for image in tokens_and_attention(folder)[0]])
    expected = PCA(3, svd_solver="full").fit(stacked)
    saved = load_file(folder / "out" / "components.safetensors")
    assert sorted(saved) == ["colors.components", "colors.mean", "colors.variances"]
    directions = expected.components_ * sign(expected.components_)[:, None]
    np.testing.assert_allclose(saved["colors.components"], directions, atol=1e-4)
    np.testing.assert_allclose(summary.shares, expected.explained_variance_ratio_, rtol=1e-4)
    assert summary.foreground is None
    assert np.asarray(Image.open(folder / "out" / "0-pca.png")).min() > 0


def test_without_being_asked_a_foreground_is_split_off_only_where_it_is_clear(folder, monkeypatch):
    summary = paint(folder)  # random weights attend to all patches about as much
    assert summary.foreground is None
    assert "3 images, all patches painted" in str(summary)
    for limit in ("CLEARLY_TWO", "ATTENDED"):  # each alone is too little
        with monkeypatch.context() as patch:
            patch.setattr(components, limit, 0)
            assert paint(folder, output=limit).foreground is None
            patch.setattr(components, "CLEARLY_TWO", 1)
            assert paint(folder, output=limit, overwrite=True).foreground is None
    monkeypatch.setattr(components, "CLEARLY_TWO", 0)
    monkeypatch.setattr(components, "ATTENDED", 0)
    assert paint(folder, output="clear").foreground == paint(folder, output="split", split=True).foreground
    for path in (folder / "clear").iterdir():
        assert path.read_bytes() == (folder / "split" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -1, 1, 1], 1),  # two points
        (np.random.default_rng(0).normal(size=20_000), 2 / np.pi),
        (np.linspace(-1, 1, 10_001), 0.75),
    ],
)
def test_the_variance_between_two_sides(values, expected):
    tokens = torch.as_tensor(np.array(values, dtype="float64"))[:, None] * torch.tensor([[3.0, 4.0]])
    moments, foreground = Moments(2), Moments(2)
    moments.add(tokens)
    first = moments.principal_components(1)
    foreground.add(tokens[first.project(tokens)[:, 0] > 0])
    share = variance_between(first, foreground, moments.count)
    assert share * len(tokens) / (len(tokens) - 1) == pytest.approx(expected, rel=0.34 if len(tokens) < 9 else 0.01)


def test_the_overview_says_of_which_model_and_of_how_many_images(folder, monkeypatch):
    monkeypatch.setattr(components, "NUM_SHOWN", 2)
    said = []
    monkeypatch.setattr(components, "mosaic", lambda rows, below: said.extend(below) or mosaic(rows, below))
    summary = paint(folder)
    assert f"{folder / 'model'}: vit_tiny, 3 blocks, 2 heads, patch 8. Images: 64 px, the shorter side." in said
    assert RANDOM_WEIGHTS in said
    assert RANDOM_WEIGHTS in summary.remarks
    assert "These are the first 2 of 3 images." in said
    model = DinoModel.from_pretrained(folder / "model")
    torch.nn.init.normal_(model.backbone.norm.bias)
    model.save_pretrained(folder / "trained")
    said.clear()
    assert RANDOM_WEIGHTS not in [*paint(folder, "trained", output="other").remarks, *said]


def test_the_same_twice_and_for_mirrored_signs(folder, monkeypatch):
    paint(folder, split=True)
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    paint(folder, output="mirrored", split=True)
    for path in (folder / "out").iterdir():
        assert path.read_bytes() == (folder / "mirrored" / path.name).read_bytes()


def test_tokens_and_attention_from_one_pass(folder):
    model = DinoModel.from_pretrained(folder / "model").eval()
    tokens, attention = tokens_and_attention(folder)
    image = TRANSFORM.crop(Image.open(folder / "images" / "1.png").convert("RGB"))
    found_tokens, found_attention = patch_tokens(model, TRANSFORM.pixel_values(image))
    np.testing.assert_allclose(found_tokens, tokens[1], atol=1e-5)
    np.testing.assert_allclose(found_attention, attention[1], atol=1e-6)


def test_a_video(folder):
    with write_video(folder / "video.mp4", 10) as append:
        for i in range(4):
            append(Image.open(folder / "images" / "1.png").rotate(4 * i))
    summary = paint(folder, images="video.mp4", size=32)
    video = Video(folder / "out" / "video-pca.mp4")
    assert summary.file == folder / "out" / "video-pca.mp4"
    assert (video.num_frames, video.fps) == (4, 10)
    assert next(iter(video)).size == (48, 32)


def test_arguments_that_cannot_work_are_refused(folder):
    DinoModel(tiny_config("resnet", head_type=None)).save_pretrained(folder / "resnet")
    with pytest.raises(ValueError, match="resnet50 has no patch tokens: use a ViT"):
        paint(folder, "resnet")
    with pytest.raises(ValueError, match="size=4 must be at least one patch of 8 pixels"):
        paint(folder, size=4)
    with pytest.raises(ValueError, match="1 vectors of 32 dimensions do not vary in 3 directions"):
        paint(folder, images="images/0.png", size=8)
    model = DinoModel.from_pretrained(folder / "model")
    torch.nn.init.constant_(model.backbone.norm.weight, 3e38)
    model.save_pretrained(folder / "large")
    with pytest.raises(ValueError, match=r"what the model sees of .*0\.png is not finite: the model's weights"):
        paint(folder, "large")
    assert not (folder / "out").exists()
