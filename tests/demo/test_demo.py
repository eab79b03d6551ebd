import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from modeling_dino import DinoModel, load_features
from modeling_dino.demo import browser, images
from modeling_dino.demo.images import copy_photographs, cut_photographs, halves
from modeling_dino.demo.options import DemoOptions
from modeling_dino.demo.run import K, pixels_of, run_demo
from modeling_dino.evaluation.evaluation_data import features_of


# what is set up once takes long, so all of it runs in one process
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def few_images():
    """Fewer tiles and views of each photograph than in the demo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "TILES", 3)
        patch.setattr(images, "VIEWS", 2)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory, few_images):
    """A demo of two steps."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(DemoOptions(output=str(folder), seed=3, overrides=("training.max_steps=2",)))


@pytest.mark.slow
def test_it_pretrains_extracts_evaluates_and_draws(demo):
    folder = demo.output
    assert DinoModel.from_pretrained(folder / "model").config.head_type == "dino"
    views, distorted = (load_features(folder / "features" / name) for name in ("views", "distorted"))
    assert len(set(views["label"])) == demo.places
    assert views["label"].tolist() == distorted["label"].tolist()
    for picture in ("seed-3/crops.png", "model/curves.png", "neighbours.png", "attention/astronaut-attention.png"):
        assert Image.open(folder / picture).size > (100, 100)
    *_, pictures, page, seconds = str(demo).splitlines()
    assert all(Path(file).is_file() for file in pictures.removeprefix("look at ").split(", "))
    assert page == f"open {(folder / 'report.html').as_uri()}, a map of the places"
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")[:1000]
    assert seconds.endswith(" s")
    (result,) = [
        result
        for result in json.loads((folder / "model" / "evaluation_results.json").read_text())
        if result.get("metric_name") == f"k-NN top-1, k={K}"
    ]
    assert result["value"] == pytest.approx(demo.accuracies["trained"], abs=1e-4)


@pytest.mark.slow
def test_pixels_are_what_the_network_sees(demo):
    views, distorted = (
        pixels_of(features_of(str(demo.output / "features" / name)), str(demo.output / "model"))
        for name in ("views", "distorted")
    )
    size = DinoModel.from_pretrained(demo.output / "model").config.image_size
    assert views.features.shape[1] == 3 * size**2
    # each votes with its cosine, as ours
    classifier = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    classifier.fit(views.features.numpy(), views.labels)
    score = classifier.score(distorted.features.numpy(), distorted.labels)
    assert demo.accuracies["pixels"] == pytest.approx(100 * score, abs=1e-4)


@pytest.mark.slow
def test_another_seed_is_refused_before_anything_is_replaced(demo):
    before = {file: file.stat().st_mtime_ns for file in demo.output.rglob("*.*") if file.parent.name != "photographs"}
    with pytest.raises(ValueError, match="a run of other settings"):
        run_demo(DemoOptions(output=str(demo.output), seed=4, overrides=("training.max_steps=2",)))
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


@pytest.mark.slow
def test_run_again_it_goes_on(demo, capsys):
    state = demo.output / "model" / "checkpoint-2" / "trainer_state.json"
    (demo.output / "report.html").unlink()
    before = state.stat().st_mtime_ns
    again = run_demo(DemoOptions(output=str(demo.output), seed=3, overrides=("training.max_steps=2",)))
    assert again.accuracies == demo.accuracies
    assert state.stat().st_mtime_ns == before
    assert again.report.is_file()
    said = capsys.readouterr().err
    assert "pretraining by the recipe photographs" in said
    assert "{'" not in said


def test_what_is_missing_is_named_before_the_work_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(ImportError, match=r"`dino demo` needs openTSNE, not installed here: run `pip install .*demo"):
        run_demo(DemoOptions(output=str(tmp_path / "demo")))
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("is_terminal", "display", "opened"), [(True, ":0", True), (True, None, False), (False, ":0", False)]
)
def test_the_report_is_opened_where_somebody_sees_it(is_terminal, display, opened, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr(browser.webbrowser, "open", pages.append)
    monkeypatch.setattr(browser.sys, "platform", "linux")
    monkeypatch.setattr(browser.sys.stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    browser.open_page(tmp_path / "report.html")
    assert pages == ([(tmp_path / "report.html").as_uri()] if opened else [])


def test_a_browser_that_fails_is_passed_over(tmp_path, monkeypatch):
    def fail(page):
        raise browser.webbrowser.Error("no browser")

    monkeypatch.setattr(browser.webbrowser, "open", fail)
    monkeypatch.setattr(browser.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    browser.open_page(tmp_path / "report.html")


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed=-1 must be at least 0"):
        DemoOptions(seed=-1)


def test_no_place_is_trained_on(tmp_path):
    for path in copy_photographs(tmp_path / "photographs"):
        left, right = halves(path)
        whole = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(np.concatenate([left, right], axis=1), whole)


def test_the_images_depend_on_the_seed_alone(tmp_path):
    photographs = copy_photographs(tmp_path / "photographs")[:1]

    def cut(name: str, seed: int) -> list[bytes]:
        folders = cut_photographs(photographs, tmp_path / name, seed)
        return [file.read_bytes() for folder in folders for file in sorted(Path(folder).rglob("*.png"))]

    assert cut("first", 0) == cut("second", 0) != cut("third", 1)
