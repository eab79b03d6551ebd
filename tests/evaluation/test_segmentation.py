import json
import shutil

import numpy as np
import pytest
import torch
from photographs import open_photograph
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.data.video import Video, write_video
from modeling_dino.evaluation.mask_files import Mask, read_mask, write_mask
from modeling_dino.evaluation.mask_scores import boundary_f, jaccard
from modeling_dino.evaluation.options import SegmentOptions
from modeling_dino.evaluation.segmentation import segment_video
from modeling_dino.hub.evaluation_results import read_evaluation_results


pytestmark = pytest.mark.usefixtures("one_thread")

PATCH = 8
NUM_FRAMES = 6
PALETTE = [0, 0, 0, 250, 0, 0, 0, 0, 0, 0, 0, 250] + [0] * 756  # objects 1 and 3


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two crops of photographs that move over a third by a patch a frame: `frames` and their `masks`."""
    folder = tmp_path_factory.mktemp("videos")
    background = open_photograph("coffee.png").resize((128, 64))
    cat, face = (open_photograph(name).crop((150, 0, 350, 200)) for name in ("chelsea.png", "astronaut.png"))
    for i in range(NUM_FRAMES):
        frame, mask = background.copy(), torch.zeros(64, 128, dtype=torch.uint8)
        for number, image, side, left, top in (
            (1, cat, 32, 8 + PATCH * i, 8),
            (3, face, 24, 96 - PATCH * i, 40 - PATCH * (i % 2)),
        ):
            frame.paste(image.resize((side, side)), (left, top))
            mask[top : top + side, left : left + side] = number
        (folder / "frames").mkdir(exist_ok=True)
        frame.save(folder / "frames" / f"{i:05}.png")
        write_mask(Mask(mask, PALETTE), folder / "masks" / f"{i:05}.png")
    # a model whose tokens hardly know where they are, so that what moves stays alike
    torch.manual_seed(0)
    model = DinoModel(tiny_config(head_type=None, num_hidden_layers=1))
    torch.nn.init.zeros_(model.backbone.pos_embed)
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def folder(videos, tmp_path):
    """A copy of it to write to."""
    shutil.copytree(videos, tmp_path / "videos")
    return tmp_path / "videos"


def segment(folder, model="model", video="frames", mask="masks/00000.png", **options):
    paths = {"model": folder / model, "video": folder / video, "mask": folder / mask, "output": folder / "out"}
    paths = {name: str(path) for name, path in paths.items()}
    return segment_video(SegmentOptions(**paths, size=64, progress=False, **options))


def test_two_objects_are_followed_and_scored(folder):
    summary = segment(folder, ground_truth=str(folder / "masks"), record=True)
    assert (summary.num_frames, summary.num_objects) == (NUM_FRAMES, 2)
    names = [f"{i:05}.png" for i in range(NUM_FRAMES)]
    assert sorted(path.name for path in (folder / "out").iterdir()) == [*names, "scores.json"]
    assert torch.equal(read_mask(folder / "out" / names[0]).objects, read_mask(folder / "masks" / names[0]).objects)
    found = [read_mask(folder / "out" / name) for name in names]
    truth = [read_mask(folder / "masks" / name).objects for name in names]
    assert all(mask.palette == PALETTE and mask.objects.shape == (64, 128) for mask in found)
    assert all(set(mask.numbers) <= {1, 3} for mask in found)
    scores = json.loads((folder / "out" / "scores.json").read_text())
    for number in (1, 3):
        pairs = [(mask.objects == number, true == number) for mask, true in zip(found, truth)][1:-1]
        expected = [jaccard(*pair) for pair in pairs]
        assert scores["frames"]["j"][str(number)] == expected
        assert min(expected) > 0.7  # it was followed to the end
        assert scores["frames"]["f"][str(number)] == [boundary_f(*pair) for pair in pairs]
        assert scores["objects"][str(number)]["J"]["mean"] == pytest.approx(np.mean(expected))
    assert scores["means"] == summary.scores.means()
    recorded = {result.metric_type: result.metric_value for result in read_evaluation_results(folder / "model")}
    assert recorded == {name: 100 * scores["means"][name] for name in ("J&F", "J mean", "F mean")}
    assert f"J&F {100 * scores['means']['J&F']:.1f}" in str(summary)


def test_where_nothing_can_be_seen_scores_are_bad(folder):
    shutil.rmtree(folder / "frames")
    (folder / "frames").mkdir()
    for i in range(NUM_FRAMES):
        Image.new("RGB", (128, 64), (90, 90, 90)).save(folder / "frames" / f"{i:05}.png")
    scores = segment(folder, ground_truth=str(folder / "masks")).scores.means()
    assert scores["J&F"] < 0.5


def test_a_video_file_and_the_overlay(folder):
    with write_video(folder / "video.mp4", 12) as append:
        for i in range(NUM_FRAMES):
            append(Image.open(folder / "frames" / f"{i:05}.png"))
    summary = segment(folder, video="video.mp4", ground_truth=str(folder / "masks"), overlay=True)
    assert summary.scores.means()["J mean"] > 0.6
    overlay = Video(folder / "out" / "overlay.mp4")
    assert (overlay.num_frames, overlay.fps) == (NUM_FRAMES, 12)
    first, plain = (next(iter(Video(path))) for path in (folder / "out" / "overlay.mp4", folder / "video.mp4"))
    inside, outside = (20, 24), (110, 10)
    assert first.getpixel(inside)[0] - plain.getpixel(inside)[0] > 20  # redder
    assert np.abs(np.subtract(first.getpixel(outside), plain.getpixel(outside))).max() < 12
    assert read_mask(folder / "out" / "00005.png").numbers == [1, 3]


def test_larger_frames_are_resized_as_pillow_does_with_antialiasing(folder):
    for path in [*folder.glob("frames/*.png"), *folder.glob("masks/*.png")]:
        with Image.open(path) as image:
            image.resize((256, 128), 0 if path.parent.name == "masks" else Image.Resampling.BICUBIC).save(path)
    segment(folder)
    large = [read_mask(folder / "out" / f"{i:05}.png").objects for i in range(NUM_FRAMES)]
    for path in [*folder.glob("frames/*.png"), *folder.glob("masks/*.png")]:
        with Image.open(path) as image:
            image.resize((128, 64), 0 if path.parent.name == "masks" else Image.Resampling.BILINEAR).save(path)
    segment(folder, overwrite=True)
    small = [read_mask(folder / "out" / f"{i:05}.png").objects for i in range(NUM_FRAMES)]
    for mask, other in zip(large, small):
        assert torch.equal(mask, other.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_settings_reach_the_propagation(folder):
    segment(folder)
    with_all = read_mask(folder / "out" / "00005.png").objects
    segment(folder, overwrite=True, num_last_frames=0, radius=1, top_k=1)
    assert not torch.equal(read_mask(folder / "out" / "00005.png").objects, with_all)


def corrupt(folder, what: str) -> dict:
    """Breaks something; returns the options that meet it."""
    frames, masks = folder / "frames", folder / "masks"
    if what == "resnet":
        DinoModel(tiny_config("resnet", head_type=None)).save_pretrained(folder / "resnet")
    if what == "frame size":
        Image.new("RGB", (64, 64)).save(frames / "00002.png")
    if what == "unreadable frame":
        (frames / "00002.png").write_text("no image")
    if what == "mask size":
        write_mask(Mask(torch.ones(32, 64, dtype=torch.uint8)), folder / "mask.png")
    if what == "empty mask":
        write_mask(Mask(torch.zeros(64, 128, dtype=torch.uint8)), folder / "mask.png")
    if what == "small object":
        mask = torch.zeros(64, 128, dtype=torch.uint8)
        mask[10:30, 10:30], mask[40:42, 40:42] = 1, 2
        write_mask(Mask(mask), folder / "mask.png")
    if what == "truth missing":
        (masks / "00003.png").unlink()
    if what == "truth of another name":
        (masks / "00003.png").rename(masks / "00003a.png")
    if what == "truth size":
        write_mask(Mask(torch.ones(32, 64, dtype=torch.uint8)), masks / "00003.png")
    if what == "empty folder":
        (folder / "empty").mkdir()
    if what == "other numbers":
        objects = read_mask(masks / "00000.png").objects
        write_mask(Mask(objects.where(objects != 3, 7)), folder / "mask.png")
    if what == "two frames":
        for path in [*frames.iterdir(), *masks.iterdir()]:
            if path.stem > "00001":
                path.unlink()
    if what == "video":
        (folder / "video.mp4").write_text("no video")
    if what == "output":
        (folder / "out").mkdir()
        (folder / "out" / "file").touch()
    if what == "weights":
        model = DinoModel.from_pretrained(folder / "model")
        torch.nn.init.constant_(model.backbone.norm.weight, 3e38)
        model.save_pretrained(folder / "model")


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("resnet", {"model": "resnet"}, "resnet50 has no patch tokens: use a ViT"),
        ("frame size", {}, "00002.png has 64 x 64 pixels, the mask 128 x 64"),
        ("unreadable frame", {}, "cannot read .*00002.png: no image in a known format"),
        ("mask size", {"mask": "mask.png"}, "00000.png has 128 x 64 pixels, the mask 64 x 32"),
        ("empty mask", {"mask": "mask.png"}, "there is no object in .*mask.png: all of it is background"),
        ("no mask", {"mask": "mask.png"}, "cannot read .*mask.png: no such file"),
        ("small object", {"mask": "mask.png"}, "object 2 is smaller than a patch: resize the frames"),
        ("truth missing", {"ground_truth": "masks"}, "masks has 5 masks, but there are 6 frames"),
        ("truth of another name", {"ground_truth": "masks"}, "masks has no mask of .*00003.png"),
        ("truth size", {"ground_truth": "masks"}, "00003.png and .*00003.png are of different sizes"),
        ("empty folder", {"ground_truth": "empty"}, r"there are no masks \(\*.png\) in .*empty"),
        ("empty folder", {"video": "empty"}, "empty: no images there"),
        ("two frames", {"ground_truth": "masks"}, "the first and the last frame do not count"),
        ("video", {"video": "video.mp4"}, "cannot read .*video.mp4: "),
        ("output", {}, "out is not empty: name a new folder, or pass --overwrite"),
        (
            "weights",
            {},
            "what the model sees of .*00000.png is not finite: the model's weights or its image transform",
        ),
        (
            "other numbers",
            {"mask": "mask.png", "ground_truth": "masks"},
            "the mask has object 7, .*00000.png has 1, 3: give each object",
        ),
    ],
)
def test_what_cannot_work_is_refused(folder, what, options, message):
    corrupt(folder, what)
    if "ground_truth" in options:
        options = {**options, "ground_truth": str(folder / options["ground_truth"])}
    with pytest.raises(ValueError, match=message):
        segment(folder, **options)
    assert not (folder / "out" / "scores.json").exists()
    assert not (folder / "model" / "evaluation_results.json").exists()
