"""Correspondences of two images, by hand, by brute force, and of images of which the answer is known."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel, match_images
from modeling_dino.pictures import matches
from modeling_dino.pictures.matches import mutual_neighbours, spread_out
from modeling_dino.pictures.patch_images import RANDOM_WEIGHTS


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a `vit` whose keys in block 0 depend on the patch alone, a `resnet`, and images."""
    monkeypatch.chdir(tmp_path)
    model = DinoModel(tiny_config(head_type=None))
    torch.nn.init.zeros_(model.backbone.pos_embed)
    model.save_pretrained("vit")
    DinoModel(tiny_config("resnet", head_type=None)).save_pretrained("resnet")
    noise = np.random.default_rng(0).integers(0, 256, (72, 112, 3), dtype=np.uint8)
    wide = Image.fromarray(noise)
    wide.crop((0, 0, 64, 64)).save("a.png")
    wide.crop((16, 8, 80, 72)).save("shifted.png")
    wide.crop((0, 0, 100, 60)).save("wide.png")
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png"):
        wide.save(tmp_path / "images" / name)
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def test_mutual_neighbours_worked_by_hand():
    """The nearest of the third is the second's second vector, whose nearest is the first."""
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    pairs, similarities = mutual_neighbours(first, second)
    assert pairs.tolist() == [[1, 0], [0, 1]]  # the most similar first
    assert similarities.tolist() == pytest.approx([1, 3 / 10**0.5])


def test_of_equals_the_first_is_the_nearest():
    pairs, _ = mutual_neighbours(torch.ones(5, 4), torch.ones(3, 4))
    assert pairs.tolist() == [[0, 0]]
    doubled = torch.eye(3)[[0, 1, 1, 2]]
    pairs, similarities = mutual_neighbours(doubled, doubled)
    assert pairs.tolist() == [[0, 0], [1, 1], [3, 3]]
    assert similarities.tolist() == [1, 1, 1]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_mutual_neighbours_by_brute_force(monkeypatch, rows):
    """However many rows are compared at once."""
    monkeypatch.setattr(matches, "ROWS_AT_ONCE", rows)
    first, second = torch.randn(40, 6), torch.randn(33, 6)
    cosines = torch.nn.functional.cosine_similarity(first[:, None].double(), second[None].double(), dim=-1).numpy()
    expected = {
        (i, j): cosines[i, j]
        for i in range(40)
        for j in range(33)
        if cosines[i, j] == cosines[i].max() == cosines[:, j].max()
    }
    pairs, similarities = mutual_neighbours(first, second)
    assert list(map(tuple, pairs.tolist())) == sorted(expected, key=lambda pair: -expected[pair])
    np.testing.assert_allclose(similarities, sorted(expected.values(), reverse=True), atol=1e-12)


def test_matches_are_spread_out_worked_by_hand():
    """Of a grid of 4 x 4 in cells of 2 x 2, the best of each cell come first, and then what is left."""
    cells = torch.tensor([0, 1, 2, 5, 15, 14])  # the most similar first; three are at the upper left
    assert spread_out(cells, (4, 4), 4).tolist() == [0, 1, 2, 4]  # no match is at the lower left
    assert spread_out(cells, (4, 4), 9).tolist() == [0, 1, 2, 3, 4, 5]
    assert spread_out(cells, (4, 4), 1).tolist() == [0]


@pytest.mark.parametrize("features", ["keys@0", "queries@0", "values@-3"])
def test_a_shifted_image_finds_the_shift(folder, features):
    paths = {"first": "a.png", "second": "shifted.png", "model": "vit", "output": "out.png"}
    found = match_images(**paths, size=64, features=features)
    is_same = found.similarities > 1 - 1e-9
    assert is_same.sum() == 6 * 7  # the patches that both images have
    assert ((found.first - found.second)[is_same] == torch.tensor([16, 8])).all()
    assert (found.similarities[~is_same] < 0.99).all()


def test_an_image_matches_itself_at_the_same_places(folder):
    """In pixels of the stored image, which is 1.25 times the resized one."""
    found = match_images(first="wide.png", second="wide.png", model="vit", output="new/out.png", size=48, top=7)
    assert torch.equal(found.first, found.second)
    expected = {(10 * (column + 0.5), 10 * (row + 0.5)) for row in range(6) for column in range(10)}
    assert set(map(tuple, found.first.tolist())) == expected
    torch.testing.assert_close(found.similarities, torch.ones(60, dtype=torch.float64))
    assert len(found.drawn) == 7
    assert found.features == "keys@2"  # of three blocks
    assert str(found) == "60 matches by keys@2, 7 of them drawn -> new/out.png"
    assert found.remarks == [RANDOM_WEIGHTS]
    assert Image.open("new/out.png").width > 160
    narrow = match_images(first="a.png", second="a.png", model="vit", output="out.png", size=24)
    centers = {((column + 0.5) * 64 / 3, (row + 0.5) * 64 / 3) for row in range(3) for column in range(3)}
    found = sorted(map(tuple, narrow.first.tolist()))
    np.testing.assert_allclose(found, sorted(centers), rtol=0, atol=1e-12)


def test_the_table_has_all_matches(folder):
    options = {"first": "a.png", "second": "shifted.png", "model": "vit", "output": "out.png", "size": 64, "top": 3}
    found = match_images(**options, table="out.csv")
    lines = (folder / "out.csv").read_text().splitlines()
    assert lines[0] == "first_x,first_y,second_x,second_y,similarity"
    rows = np.array([list(map(float, line.split(","))) for line in lines[1:]])
    assert len(rows) == len(found.similarities) > 3
    np.testing.assert_allclose(rows, torch.cat([found.first, found.second, found.similarities[:, None]], 1), atol=1e-6)
    before = (folder / "out.png").read_bytes()
    match_images(**options, table="out.csv")  # replaces its own files, and nobody else's
    assert (folder / "out.png").read_bytes() == before
    for name, value in (("output", "a.png"), ("table", "own.csv")):
        (folder / "own.csv").write_text("x,y\n")
        with pytest.raises(ValueError, match=f"{value} was not written by this command"):
            match_images(**{**options, name: value})


def test_lines_join_the_matches(folder):
    """In colours of their own, from one image to the other, whose own pixels are grey here."""
    for name in ("one", "two"):
        Image.new("RGB", (32, 32), "grey").save(f"{name}.png")
    found = match_images(first="one.png", second="two.png", model="vit", output="out.png", size=32, features="keys@0")
    assert len(found.similarities) == 1
    pixels = np.asarray(Image.open("out.png").convert("RGB")).astype(int)
    is_red = (pixels[..., 0] - pixels[..., 1] > 150) & (pixels[..., 1] == pixels[..., 2])
    columns = np.flatnonzero(is_red[: matches.GAP + 60].any(0))
    assert np.ptp(columns) >= 32 + matches.GAP  # from the patch of one to that of the other


def test_match(dino, folder):
    arguments = "match a.png shifted.png --model vit --output out.png --size 64 --table out.csv"
    code, out, err = dino(*arguments.split())
    assert (code, "matches by keys@2" in out, RANDOM_WEIGHTS in err) == (0, True, True)
    assert {path.name for path in folder.glob("out*")} == {"out.png", "out.csv"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("a.png a.png --model resnet", "resnet50 has no patch tokens: use a ViT"),
        ("a.png text.png --model vit", "cannot read text.png: no image in a known format"),
        ("text.png a.png --model vit", "cannot read text.png: no image in a known format"),
        ("a.png nothing.png --model vit", "nothing.png is neither a folder, nor an image"),
        ("a.png images --model vit", "images has several images: name one"),
        ("a.png a.png --model vit --features cls", "cls features are not of patches: choose patches or a facet"),
        ("a.png a.png --model vit --features keys", "unknown features 'keys': allowed are cls"),
        ("a.png a.png --model vit --features keys@3", "no such layers, [3]: vit_tiny has layers 0 to 2"),
        ("a.png a.png --model vit --top 0", "top=0 must be at least 1"),
        ("a.png a.png --model vit --size 7", "size=7 must be at least one patch of 8 pixels"),
        ("a.png a.png --model vit --bands 9", "bands=9 must be one number or three"),
        ("a.png a.png --model vit --table out.json", "table out.json must end with .csv"),
        ("a.png a.png --model vit --output out.jpg", "output out.jpg must end with .png"),
        ("a.png --model vit", "Missing argument 'SECOND'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(dino, folder, arguments, message):
    before = sorted(folder.iterdir())
    output = () if "--output" in arguments else ("--output", "out.png")
    code, _, err = dino("match", *arguments.split(), *output)
    assert (code, message in err, "Traceback" in err) == (2, True, False), err
    assert sorted(folder.iterdir()) == before
