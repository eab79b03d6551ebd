"""The report's numbers against brute force and cases worked by hand; the page as a browser sees it."""

import base64
import io
import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import datasets
import numpy as np
import pytest
import skimage.data
import torch
from browser import chromium, requests, wait_for_mark
from feature_folders import records_of, write_features
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.extraction.feature_files import MANIFEST
from modeling_dino.pictures.patch_images import RANDOM_WEIGHTS
from modeling_dino.report import page as report
from modeling_dino.report import thumbnails
from modeling_dino.report.feature_map import FINEST, fill_square, levels_of_detail, place_images
from modeling_dino.report.neighbourhoods import leave_one_out, near_duplicates, nearest_others
from modeling_dino.report.options import ReportOptions
from modeling_dino.report.page import ReportSummary, write_report
from modeling_dino.report.thumbnails import MAX_IMAGES, jpeg, side_for


pytestmark = pytest.mark.usefixtures("one_thread")
EVIL = "</script><img src=x onerror=document.title='hacked'>.png"  # a folder `<`, and a file in it
EVIL_LABEL = "<!--<script>\u2028&quot;${title}$atlases"


class Page(HTMLParser):
    """The elements of a page, and the numbers in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.scripts, self.metas = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.data = json.loads(self.script("data"))
        self.names = self.data["names"]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes).get("id"), ""])
        if tag == "meta":
            self.metas.append(dict(attributes))

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1][1] += data

    def script(self, name: str) -> str:
        return dict(self.scripts)[name]

    def array(self, name: str, dtype: str) -> np.ndarray:
        """An array in the order of the page, (N, ...)."""
        values = self.data["knn"]["predicted"] if name == "predicted" else self.data[name]
        return np.frombuffer(base64.b64decode(values), dtype).reshape(len(self.names), -1)

    def thumbnail(self, place: int) -> np.ndarray:
        side = self.data["thumbnails"]["side"]
        atlas = Image.open(io.BytesIO(base64.b64decode(self.script(f"atlas-{place // 256}"))))
        left, top = place % 16 * side, place % 256 // 16 * side
        return np.asarray(atlas.crop((left + 1, top + 1, left + side - 1, top + side - 1))).astype(int)


def colour(i: int) -> tuple[int, int, int]:
    return i * 37 % 256, i * 101 % 256, i * 59 % 256


def write_images(folder: Path, names: list[str]):
    """Images of one colour each."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 24), colour(i)).save(folder / name, "PNG")


def numbered(count: int, classes: int = 0) -> list[str]:
    return [f"class {i % classes}/{i:04d}.png" if classes else f"{i:04d}.png" for i in range(count)]


def report_on(folder: Path, **options) -> ReportSummary:
    """Writes the page about a folder of features."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return write_report(ReportOptions(folder=str(folder), progress=False, **options))


def make(folder: Path, features: np.ndarray, names: list[str] | None = None, **options) -> Page:
    """Images, features, and the page about them."""
    write_images(folder / "images", names or numbered(len(features)))
    write_features(folder / "features", folder / "images", features)
    return Page(report_on(folder / "features", **options).output)


def random_features(count: int, width: int = 16) -> np.ndarray:
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(5, width))
    return (centers[np.arange(count) % 5] + generator.normal(size=(count, width))).astype("float32")


def cosines(features: np.ndarray) -> np.ndarray:
    """Of all pairs, without those of an image with itself."""
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    products = unit @ unit.T
    np.fill_diagonal(products, -np.inf)
    return products


def test_neighbours_and_distances_are_those_of_brute_force(tmp_path):
    features = random_features(150)
    page = make(tmp_path, features, k=7)
    rows = np.array([int(name.removesuffix(".png")) for name in page.names])
    assert sorted(rows) == list(range(150))
    expected = cosines(features)[rows]
    nearest = np.argsort(-expected, axis=1)[:, :7]
    np.testing.assert_array_equal(rows[page.array("neighbours", "<u4")], nearest)
    similarities = np.take_along_axis(expected, nearest, axis=1)
    np.testing.assert_allclose(page.array("similarities", "<f4"), similarities, rtol=0, atol=3e-7)
    np.testing.assert_allclose(page.array("distances", "<f4")[:, 0], 1 - similarities.mean(1), rtol=0, atol=3e-7)


def test_confusion_is_that_of_scikit_learn_without_the_image_itself(tmp_path):
    features, k = random_features(100), 9
    page = make(tmp_path, features, sorted(numbered(100, classes=4)), k=k)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.arange(100) // 25  # in the order of the paths
    expected = []
    for i in range(100):
        others = np.arange(100) != i
        theirs = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute")
        expected.append(theirs.fit(unit[others], labels[others]).predict(unit[i : i + 1])[0])
    assert page.data["classes"] == [f"class {i}" for i in range(4)]
    rows = np.array([labels.tolist().index(int(name[6])) + int(name[8:12]) // 4 for name in page.names])
    np.testing.assert_array_equal(page.array("labels", "<i4")[:, 0], labels[rows])
    np.testing.assert_array_equal(page.array("predicted", "<i4")[:, 0], np.array(expected)[rows])
    assert page.data["knn"]["accuracy"] == pytest.approx(100 * np.mean(expected == labels))


def test_a_case_worked_by_hand():
    """
    Images at angles of 0, 10, 20, 90 and 180 degrees; the nearest two of the one at 90 are at 20 and 10.

    Linked from a cosine of 0.98 on (11.5 degrees) are 0, 10, 20, one after the other, and none else.
    """
    angles = torch.tensor([0.0, 10, 20, 90, 180]).deg2rad()
    similarities, neighbours = nearest_others(3 * torch.stack([angles.cos(), angles.sin()], dim=1), 2)
    assert neighbours[0].tolist() == [1, 2]
    assert sorted(neighbours[1].tolist()) == [0, 2]
    assert neighbours[3].tolist() == [2, 1]
    assert neighbours[4].tolist() == [3, 2]
    expected = torch.tensor([[70.0, 80.0], [90.0, 160.0]]).deg2rad().cos()
    torch.testing.assert_close(similarities[3:], expected, rtol=0, atol=1e-6)
    assert [group.tolist() for group in near_duplicates(similarities, neighbours, 0.98)] == [[0, 1, 2]]
    assert near_duplicates(similarities, neighbours, 0.99) == []
    # of the image at 90 both neighbours are of class 1; at 180 the one of class 0 is the nearer by far
    labels = torch.tensor([0, 1, 1, 0, 0])
    assert leave_one_out(torch.stack([angles.cos(), angles.sin()], dim=1), labels, 2).tolist()[3:] == [1, 0]


def test_groups_of_duplicates(tmp_path):
    features = np.eye(12)[[0, 1, 2, 3, 0, 5, 6, 3, 8, 9, 0, 11]]
    features[10, 1] = 0.2  # a cosine of 0.98 with images 0 and 4
    page = make(tmp_path, features, duplicates=0.975)
    groups = [{int(page.names[i][:4]) for i in group} for group in page.data["duplicates"]["groups"]]
    assert sorted(groups, key=min) == [{0, 4, 10}, {3, 7}]
    assert "5 in groups of near-duplicates" in str(report_on(tmp_path / "features", duplicates=0.975))
    assert make_again(tmp_path, duplicates=0.99).data["duplicates"]["groups"] != page.data["duplicates"]["groups"]


def make_again(folder: Path, **options) -> Page:
    return Page(report_on(folder / "features", **options).output)


def test_no_image_is_its_own_neighbour_among_many_equals():
    similarities, neighbours = nearest_others(torch.ones(30, 4), 3)
    assert neighbours.shape == (30, 3)
    assert (neighbours != torch.arange(30)[:, None]).all()
    assert all(len(set(row)) == 3 for row in neighbours.tolist())
    assert (similarities <= 1).all()


def test_the_map_keeps_neighbourhoods_and_is_the_same_again():
    features = torch.from_numpy(random_features(200))
    similarities, neighbours = nearest_others(features, 90)
    places = place_images(features, similarities, neighbours)
    assert places.min() >= 0
    assert places.max() <= 1
    np.testing.assert_allclose(np.ptp(places, axis=0), 1, atol=1e-6)
    unit = torch.nn.functional.normalize(features).numpy()
    assert trustworthiness(unit, places, n_neighbors=10) > 0.85
    shuffled = np.random.default_rng(0).permutation(places)
    assert trustworthiness(unit, shuffled, n_neighbors=10) < 0.6  # so the check can fail
    np.testing.assert_array_equal(place_images(features, similarities, neighbours), places)


def test_the_map_fills_its_square_and_keeps_the_order_along_its_axes():
    """An island far away does not squeeze the others."""
    generator = np.random.default_rng(0)
    places = np.concatenate([generator.random((99, 2)) * [4, 1], [[400, 0]]])
    filled = fill_square(places)
    assert filled.min() == 0
    assert filled.max() == 1
    for axis in (0, 1):
        others = filled[:99, axis]
        assert np.ptp(others) > 0.45
    order = np.argsort(filled[:, 0])
    assert np.array_equal(order, np.argsort(places[:, 0])) or np.array_equal(order, np.argsort(-places[:, 0]))
    tall = fill_square(places[:, ::-1])  # turned, so that it extends most from left to right
    np.testing.assert_allclose(
        np.minimum(tall[:, 0], 1 - tall[:, 0]), np.minimum(filled[:, 0], 1 - filled[:, 0]), atol=1e-6
    )
    same = fill_square(places[[3, 5, 3, 3, 7]])
    assert np.array_equal(same[0], same[2])
    assert len(np.unique(same, axis=0)) == 3


def tiles_and_copies() -> tuple[list[Image.Image], list[int]]:
    """Tiles of photographs that do not overlap, then copies of some, compressed or resized; and of which they are."""
    tiles = []
    for name in ("astronaut.png", "coffee.png", "chelsea.png", "motorcycle_left.png"):
        with Image.open(Path(skimage.data.__file__).parent / name) as opened:
            photograph = opened.convert("RGB")
        side = min(photograph.size) // 4
        corners = [(x, y) for x in range(0, 3 * side + 1, side) for y in range(0, 3 * side + 1, side)]
        tiles += [photograph.crop((x, y, x + side, y + side)).resize((64, 64)) for x, y in corners]
    copied = list(range(0, len(tiles), 8))
    copies = []
    for i in copied:
        file = io.BytesIO()
        tiles[i].save(file, "JPEG", quality=60)
        copies.append(Image.open(file).convert("RGB") if i % 16 else tiles[i].resize((48, 48)).resize((64, 64)))
    return tiles + copies, copied


def test_copies_are_duplicates_and_tiles_of_a_model_of_random_weights_are_not():
    torch.manual_seed(0)
    images, copied = tiles_and_copies()
    count = len(images) - len(copied)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - 0.5 for image in images])
    with torch.inference_mode():
        features = DinoModel(tiny_config(image_size=64)).eval()(4 * pixels).pooler_output
    similarities, neighbours = nearest_others(features, 90)
    assert (similarities[:, 0] > 0.95).double().mean() > 0.9  # a limit of this cosine would link almost all
    groups = [set(group.tolist()) for group in near_duplicates(similarities, neighbours)]
    wrong = [group for group in groups if len(group & set(range(count))) > 1]
    assert sum(map(len, wrong)) <= 0.05 * count
    found = [any({i, count + place} <= group for group in groups) for place, i in enumerate(copied)]
    assert np.mean(found) >= 0.85


def test_copies_among_features_that_tell_images_apart():
    """In classes of ten, images have cosines of about 0.6 with each other, and copies of 0.99 with the image."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, 64, generator=generator).repeat_interleave(10, 0)
    features = centers + 0.8 * torch.randn(200, 64, generator=generator)
    copies = (
        features[:40:4]
        + 0.13 * features[:40:4].norm(dim=1, keepdim=True) * torch.randn(10, 64, generator=generator) / 8
    )
    similarities, neighbours = nearest_others(torch.cat([features, copies]), 90)
    groups = [group.tolist() for group in near_duplicates(similarities, neighbours)]
    assert sorted(groups) == [[4 * i, 200 + i] for i in range(10)]


def test_equal_features_are_duplicates_however_many_there_are():
    features = torch.cat([torch.eye(20), torch.eye(20)[:1].repeat(40, 1)])
    assert [group.tolist() for group in near_duplicates(*nearest_others(features, 90))] == [[0, *range(20, 60)]]
    assert [group.tolist() for group in near_duplicates(*nearest_others(torch.ones(2, 4), 90))] == [[0, 1]]
    assert near_duplicates(*nearest_others(torch.ones(1, 4), 90)) == []


def test_the_page_says_how_duplicates_are_found_and_that_weights_are_random(tmp_path):
    page = make(tmp_path, random_features(30))
    assert "at most 0.2 times that of each to its 10th nearest neighbour" in page.data["duplicates"]["rule"]
    assert page.data["warning"] is None
    manifest = tmp_path / "features" / MANIFEST
    manifest.write_text(
        manifest.read_text().replace('"streaming": false', '"streaming": false, "random_weights": true')
    )
    page = make_again(tmp_path, duplicates=0.97)
    assert "a cosine similarity of at least 0.97 to another one" in page.data["duplicates"]["rule"]
    assert page.data["warning"] == RANDOM_WEIGHTS


def test_no_thumbnail_covers_another_at_its_level():
    places = np.random.default_rng(0).random((400, 2)).astype("float32")
    places[7] = places[8]  # these cannot be told apart at any magnification
    order, levels = levels_of_detail(places)
    assert sorted(order) == list(range(400))
    assert [count for _, count in levels] == sorted(count for _, count in levels)
    assert levels[-1][1] == 400
    assert levels[-1][0] <= FINEST  # no earlier, for the two in one place
    apart = np.abs(places[:, None].astype(float) - places[None]).max(-1)
    for distance, count in levels[:-1]:
        shown, others = order[:count], order[count:]
        between = apart[np.ix_(shown, shown)]
        assert between[~np.eye(count, dtype=bool)].min(initial=9) >= distance
        assert (apart[np.ix_(others, shown)].min(1) < distance).all()  # and there is room for no other


def test_thumbnails_show_the_images_of_every_source(tmp_path):
    names = numbered(20)
    write_images(tmp_path / "images", names)
    files = sorted((tmp_path / "images").iterdir())
    (tmp_path / "list.txt").write_text("\n".join(map(str, reversed(files))))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files], "label": list(range(20))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "images.parquet")
    for source in ("images", "list.txt", "images.tar", "images.parquet"):
        write_features(tmp_path / f"features of {source}", tmp_path / source, random_features(20))
        summary = report_on(tmp_path / f"features of {source}")
        assert (summary.missing, summary.notes) == ({}, []), source
        page = Page(summary.output)
        for place, name in enumerate(page.names):
            number = int(re.search(r"\d+", name.rpartition("/")[2]).group())
            assert np.abs(page.thumbnail(place) - colour(number)).max() <= 4, (source, name)
    assert page.data["classes"] == [str(i) for i in range(20)]  # numbers in the order of numbers


def test_images_that_are_gone_or_damaged_have_none_and_are_counted(tmp_path):
    write_images(tmp_path / "images", numbered(12))
    write_features(tmp_path / "features", tmp_path / "images", random_features(12))
    (tmp_path / "images" / "0003.png").unlink()
    (tmp_path / "images" / "0005.png").write_bytes(b"no image")
    summary = report_on(tmp_path / "features", num_workers=2)
    assert "12 images, 2 without a picture" in str(summary)
    assert len(summary.notes) == 1
    assert "differs in paths or sizes" in summary.notes[0]
    page = Page(summary.output)
    missing = {page.names[i]: reason for reason, list_ in page.data["thumbnails"]["missing"].items() for i in list_}
    assert missing["0003.png"] == "not among the images any more"
    assert missing["0005.png"].startswith("no image in a known format")
    assert set(missing) == {"0003.png", "0005.png"}


def test_images_that_have_moved(tmp_path):
    make(tmp_path, random_features(12), numbered(12, classes=3))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    summary = report_on(tmp_path / "features")
    assert summary.missing == {"the images are gone": 12}
    assert "--images says where they are now" in summary.notes[0]
    assert not [name for name, _ in Page(summary.output).scripts if name and name.startswith("atlas")]
    summary = report_on(tmp_path / "features", images=str(tmp_path / "elsewhere"))
    assert summary.missing == {}
    page = Page(summary.output)
    for place, name in enumerate(page.names):
        assert np.abs(page.thumbnail(place) - colour(int(name[-8:-4]))).max() <= 4
    with pytest.raises(ValueError, match="nowhere is neither a folder"):
        report_on(tmp_path / "features", images="nowhere")


@pytest.mark.parametrize(("count", "side"), [(1, 160), (3201, 112), (20_000, 64), (20_001, 48), (MAX_IMAGES, 32)])
def test_the_more_images_the_smaller_the_thumbnails(count, side):
    assert side_for(count) == side


def test_what_is_hard_to_compress_has_less_quality():
    noise = Image.effect_noise((256, 256), 100)
    noise = Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)])
    assert len(jpeg(noise, 10**6)) > 32_768
    assert len(jpeg(noise, 32_768)) <= 32_768
    assert thumbnails.BYTES_PER_PIXEL * 256**2 == 32_768
    assert thumbnails.MAX_PIXELS * thumbnails.BYTES_PER_PIXEL * 4 / 3 < 55e6  # in base64


def test_names_and_labels_stay_text(tmp_path):
    names = [EVIL, *numbered(14)]
    write_images(tmp_path / "images", names)
    rows = [{"image": {"bytes": (tmp_path / "images" / "0001.png").read_bytes(), "path": None}, "label": EVIL_LABEL}]
    datasets.Dataset.from_list(rows * 3).to_parquet(tmp_path / "images.parquet")
    for source, evil in (("images", EVIL), ("images.parquet", EVIL_LABEL)):
        folder = tmp_path / f"of {source} </title><script>"
        features = random_features(len(records_of(tmp_path / source)))
        write_features(folder, tmp_path / source, features)
        page = Page(report_on(folder, output=tmp_path / "page.html").output)
        assert [name for name, _ in page.scripts] == ["data", None, "atlas-0"]
        assert page.script("data").isascii() or "<" not in page.script("data")
        assert "img" not in page.tags
        assert evil in (page.names + (page.data["classes"] or []))
        assert page.data["title"].endswith("</title><script>")


def test_the_page_names_no_address_and_allows_none(tmp_path):
    page = make(tmp_path, random_features(12))
    assert not re.findall(r"(?:https?|wss?|ftp|file)://|//[\w-]+\.\w|@import|url\(", page.text.replace("/tmp", ""))
    policy = next(meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert re.search("script-src 'sha256-.{44}'; base-uri 'none'; form-action 'none'$", policy)


def test_some_images_without_label(tmp_path):
    """They have neighbours, but neither vote nor are classified; and labels that are numbers are in their order."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    labels = [10, 2, None] * 5
    rows = {"image": [{"bytes": image.getvalue(), "path": None}] * 15, "label": labels}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, kinds).to_parquet(tmp_path / "images.parquet")
    features = np.repeat(np.eye(5), 3, axis=0) + np.arange(15)[:, None] / 100
    write_features(tmp_path / "features", tmp_path / "images.parquet", features)
    page = Page(report_on(tmp_path / "features", k=1).output)
    assert page.data["classes"] == ["2", "10"]
    found = {
        int(name): (label, says)
        for name, label, says in zip(
            page.names, page.array("labels", "<i4")[:, 0].tolist(), page.array("predicted", "<i4")[:, 0].tolist()
        )
    }
    for row, label in enumerate(labels):
        expected = {None: (-1, -1), 2: (0, 1), 10: (1, 0)}[label]  # the other labelled one of its three is nearest
        assert found[row] == expected
    assert page.data["knn"]["accuracy"] == 0


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 11])
def test_few_images(tmp_path, count):
    page = make(tmp_path, random_features(count))
    assert page.data["k"] == count - 1
    assert page.data["knn"] is None
    places = page.array("places", "<f4")
    assert np.isfinite(places).all()
    assert count == 1 or len(np.unique(places, axis=0)) == count


def test_a_single_labelled_image(tmp_path):
    page = make(tmp_path, random_features(1), ["class/0.png"])
    assert page.data["knn"]["accuracy"] is None
    assert page.array("predicted", "<i4").tolist() == [[-1]]


def test_equal_and_zero_features(tmp_path):
    page = make(tmp_path, np.concatenate([np.zeros((20, 4)), np.ones((20, 4))]))
    assert np.isfinite(page.array("places", "<f4")).all()
    assert np.isfinite(page.array("similarities", "<f4")).all()


def test_a_sample_of_more_images(tmp_path):
    features = random_features(40)
    write_images(tmp_path / "images", numbered(40))
    write_features(tmp_path / "features", tmp_path / "images", features)
    summary = report_on(tmp_path / "features", max_images=15)
    page = Page(summary.output)
    assert str(summary).startswith("15 of 40 images, ")
    assert ["Images", "15, a random sample of 40"] in page.data["facts"]
    rows = np.array([int(name[:4]) for name in page.names])
    assert len(set(rows)) == 15
    nearest = cosines(features[rows]).argmax(1)
    np.testing.assert_array_equal(page.array("neighbours", "<u4")[:, 0], nearest)
    for place, row in enumerate(rows):
        assert np.abs(page.thumbnail(place) - colour(row)).max() <= 4


def test_features_that_cannot_be_shown_are_refused(tmp_path):
    write_images(tmp_path / "images", numbered(3))
    (tmp_path / "empty").mkdir()
    features = random_features(3)
    features[1, 5] = np.nan
    write_features(tmp_path / "nan", tmp_path / "images", features)
    write_features(tmp_path / "none", tmp_path / "empty", np.empty((0, 8)))
    write_features(tmp_path / "patches", tmp_path / "images", np.ones((3, 4, 8)))
    for name, says in (
        ("nan", r"in .* the feature of .*0001.png is not finite"),
        ("none", "there are no images in"),
        ("patches", "has cls features, several vectors an image"),
        ("images", "holds something other than features"),
        ("nowhere", "holds something other than features"),
    ):
        with pytest.raises(ValueError, match=says):
            report_on(tmp_path / name)
        assert not (tmp_path / name / "report.html").exists()
    manifest = tmp_path / "nan" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(ValueError, match="is not complete: run the same `dino extract` again"):
        report_on(tmp_path / "nan")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 0}, "k=0 must be between 1 and 90"),
        ({"num_clusters": 0}, "clusters=0 must be at least 1"),
        ({"duplicates": 1.5}, "duplicates=1.5 is a cosine, and must be between -1 and 1"),
        ({"max_images": MAX_IMAGES + 1}, "between 1 and 80000"),
        ({"features": "patch_mean"}, "has cls features, not patch_mean"),
        ({"output": "."}, "is a folder: choose another name"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path, options, says):
    write_images(tmp_path / "images", numbered(2))
    write_features(tmp_path / "features", tmp_path / "images", random_features(2))
    with pytest.raises(ValueError, match=says):
        report_on(tmp_path / "features", **options)


def test_the_page_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    page = tmp_path / "deep" / "page.html"
    page.parent.mkdir()
    page.write_text("somebody's page, " * 100_000)
    before = page.read_text()
    with pytest.raises(ValueError, match=r"page.html was not written by this command, and is kept"):
        make(tmp_path, random_features(5), output=page)
    assert page.read_text() == before
    page.write_text(f"<meta content='{report.PAGE_MARK}'>" + "an earlier page, " * 100_000)
    make(tmp_path, random_features(5), output=page)
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>\n")
    monkeypatch.setattr(report, "atlases", lambda pictures: [b"", 1 / 0])
    with pytest.raises(ZeroDivisionError):
        report_on(tmp_path / "features", output=page)
    assert page.read_text() == text
    assert list(page.parent.iterdir()) == [page]


IS_RESIZED = """
    const box = $("map").getBoundingClientRect();
    return width === box.width && height === box.height && innerWidth;
"""
# shares of the width and the height of the map that the images extend over, without what the legend takes
EXTENT = """
    const [x, y] = [[], []];
    for (let i = 0; i < count; i++) x.push(screenX(i)) && y.push(screenY(i));
    const extent = (values) => Math.max(...values) - Math.min(...values);
    return [extent(x) / (width - legendWidth()), extent(y) / height, Math.min(...x) - legendWidth(), Math.min(...y)];
"""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    """A click shows neighbours, and so does the keyboard; the page logs no errors, and sends no requests."""
    names = sorted([EVIL, *numbered(39, classes=3)])
    features = random_features(40)
    page = make(tmp_path, features, names, k=6)
    with chromium(tmp_path / "profile") as browser:
        browser.get((tmp_path / "features" / "report.html").as_uri())
        wait_for_mark(browser, "pictures")
        canvas = browser.find_element(By.ID, "canvas")
        for size in (1800, 700), (1440, 900):  # the map fills its canvas
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            WebDriverWait(browser, 20, 0.05).until(lambda b, size=size: b.execute_script(IS_RESIZED) == size[0])
            assert min(browser.execute_script(EXTENT)[:2]) > 0.85
            assert min(browser.execute_script(EXTENT)[2:]) > 20

        place = browser.execute_script("return [0, 1, 2].map(i => [screenX(i) - width / 2, screenY(i) - height / 2])")
        ActionChains(browser).move_to_element_with_offset(canvas, *map(round, place[1])).click().perform()
        rows = np.array([names.index(name) for name in page.names])
        order = np.argsort(-cosines(features[rows])[1])[:6]
        assert neighbours_shown(browser) == [(page.names[i], f"{cosines(features[rows])[1, i]:.3f}") for i in order]
        assert browser.find_element(By.CSS_SELECTOR, "#content h2").text == page.names[1]

        browser.find_element(By.CSS_SELECTOR, "#content .tiles button").click()  # on to the nearest of them
        assert browser.find_element(By.CSS_SELECTOR, "#content h2").text == page.names[order[0]]
        canvas.send_keys("0", Keys.ENTER)
        assert len(neighbours_shown(browser)) == 6

        for tab in ("duplicates", "outliers", "labels", "run"):
            browser.find_element(By.ID, f"tab-{tab}").click()
            assert browser.find_element(By.ID, "content").text
        browser.find_element(By.ID, "query").send_keys("onerror")
        found = browser.find_elements(By.CSS_SELECTOR, "#content .tiles button")
        assert [page.names[int(tile.get_attribute("data-image"))] for tile in found] == [EVIL]
        found[0].click()
        assert browser.find_element(By.CSS_SELECTOR, "#content h2").text == EVIL
        assert browser.title != "hacked"
        assert browser.execute_script(f"return {OVERFLOW}") <= 0

        assert browser.get_log("browser") == []
        asked = requests(browser)
        assert asked[0].startswith("file://")
        assert [url for url in asked[1:] if not url.startswith("data:")] == []


def neighbours_shown(browser) -> list[tuple[str, str]]:
    """Names and similarities."""
    tiles = browser.find_elements(By.CSS_SELECTOR, "#content .tiles button")
    labels = [tile.get_attribute("aria-label").split(", ") for tile in tiles]
    return [(label[0], label[-1]) for label in labels]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(tmp_path, dark):
    make(tmp_path, random_features(40), numbered(40, classes=4))
    with chromium(tmp_path / "profile", 390, 844, dark) as browser:
        browser.get((tmp_path / "features" / "report.html").as_uri())
        wait_for_mark(browser, "pictures")
        assert browser.execute_script("return innerWidth") == 390
        assert min(browser.execute_script(EXTENT)[:2]) > 0.8
        assert browser.execute_script(f"return {OVERFLOW}") <= 0
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 20, 22)" if dark else "rgb(250, 249, 246)")
        browser.execute_script("openTab('labels')")
        assert "k-NN accuracy: " in browser.find_element(By.ID, "content").text
        assert browser.execute_script(f"return {OVERFLOW}") <= 0
        assert browser.get_log("browser") == []
