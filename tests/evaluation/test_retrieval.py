"""`dino retrieve`, from images or features to neighbours, a contact sheet, and results."""

import csv
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feature_folders import write_features
from PIL import Image, ImageDraw
from tiny_models import tiny_config

from modeling_dino import DinoImageProcessor, DinoModel, load_features
from modeling_dino.evaluation import contact_sheet, retrieval
from modeling_dino.evaluation.options import RetrieveOptions
from modeling_dino.evaluation.retrieval import Retrieval, about_sheet, retrieve, shown_queries
from modeling_dino.extraction.extract import extract_features
from modeling_dino.extraction.features import image_features
from modeling_dino.extraction.options import ExtractOptions
from modeling_dino.pictures.patch_images import RANDOM_WEIGHTS


pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 220)}
NUM_OF_CLASS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`, `index` (images of three classes), `queries` (one of each), `plain` (the same without labels)."""
    folder = tmp_path_factory.mktemp("retrieve")
    torch.manual_seed(0)
    DinoModel(tiny_config()).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    for part, count in (("index", NUM_OF_CLASS), ("queries", 1)):
        for name, color in CLASSES.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (48, 40 + 8 * i), color)
                x, y = random.integers(0, 30, 2).tolist()
                ImageDraw.Draw(image).ellipse((x, y, x + 12, y + 10), fill="white")
                image.save(folder / part / name / f"{name}-{part}-{i}.png")
    (folder / "plain").mkdir()
    for name in CLASSES:
        (folder / "plain" / f"{name}.png").write_bytes((folder / f"queries/{name}/{name}-queries-0.png").read_bytes())
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    """In the folder, so that names are short."""
    monkeypatch.chdir(folder)
    return folder


def features_by_hand(model: DinoModel, files: list[str], *arguments) -> torch.Tensor:
    processor = DinoImageProcessor.from_pretrained("model")
    with torch.no_grad():
        rows = [
            image_features(model, processor(Image.open(file), return_tensors="pt")["pixel_values"], *arguments)[0]
            for file in files
        ]
    return torch.nn.functional.normalize(torch.stack(rows))


def search(index, queries=None, model=None, **options) -> Retrieval:
    return retrieve(RetrieveOptions(index=index, queries=queries, model=model, progress=False, **options))


def test_neighbours_of_images_are_the_models(here):
    found = search("index", "plain/green.png", "model", top=3, features="cls_gem")
    model = DinoModel.from_pretrained("model").eval()
    index, query = (
        features_by_hand(model, found.index.names, "cls_gem"),
        features_by_hand(model, ["plain/green.png"], "cls_gem"),
    )
    similarities, places = (query @ index.T).topk(3)
    assert found.places.tolist() == places.tolist()
    torch.testing.assert_close(found.similarities, similarities, rtol=0, atol=1e-5)
    assert found.evaluations == {}
    assert str(found).splitlines()[0] == "plain/green.png"
    assert str(found).splitlines()[1] == f"  {similarities[0, 0]:.4f}  {found.index.names[places[0, 0]]}"
    assert "not evaluated: the images of plain/green.png have no labels" in str(found)


def extract_index(output, **options):
    names = {"model": "model", "images": "index", "output": str(output), "progress": False}
    extract_features(ExtractOptions(**names, **options))


def test_each_image_against_the_others_by_faiss_and_without(here):
    by_faiss, exact = (search("index", model="model", search=s) for s in ("faiss", "exact"))
    assert torch.equal(by_faiss.places, exact.places)
    assert exact.places.shape == (12, 10)
    assert not (exact.places == torch.arange(12).unsqueeze(1)).any()
    assert exact.evaluations[""]["queries"] == 12
    assert exact.evaluations == by_faiss.evaluations


@pytest.mark.slow
def test_features_that_were_extracted_before(here, tmp_path):
    """Queries are then made as they are, by the model they are of."""
    options = {"features": "gem", "gem_p": 3.0, "scales": (1.0, 0.75), "resize": "square", "image_size": 40}
    extract_index(tmp_path / "features", **options)
    before = search(str(tmp_path / "features"), "queries")
    at_once = search("index", "queries", "model", **options)
    assert torch.equal(before.places, at_once.places)
    torch.testing.assert_close(before.similarities, at_once.similarities, rtol=0, atol=1e-5)
    assert before.evaluations[""]["queries"] == 3
    with pytest.raises(ValueError, match=r"has features of scales=\[1.0, 0.75\], not of scales=\[1.0\]: extract"):
        search(str(tmp_path / "features"), "queries", scales=(1.0,))


def test_an_image_of_the_index_does_not_find_itself(here):
    found = search("index", "index/red", "model", top=11)
    for name, places in zip(found.queries.names, found.places.tolist()):
        assert sorted(found.index.names[i] for i in places) == sorted(set(found.index.names) - {name})


def test_whitening_learned_from_the_index_and_from_others(here):
    plain = search("index", "plain", "model")
    by_index = search("index", "plain", "model", whiten_dim=2)
    by_other = search("index", "plain", "model", whiten="index", whiten_dim=2)
    assert torch.equal(by_index.similarities, by_other.similarities)
    index, queries = plain.index.features.double(), plain.queries.features.double()
    _, s, v = torch.linalg.svd(index - index.mean(0), full_matrices=False)
    index, queries = ((x - plain.index.features.double().mean(0)) @ v[:2].T / s[:2] for x in (index, queries))
    expected = torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(index).T
    torch.testing.assert_close(by_index.similarities.double(), expected.gather(1, by_index.places), rtol=0, atol=1e-5)


def test_what_the_command_writes(dino, here, tmp_path):
    assert dino("retrieve", "--help")[0] == 0
    model = tmp_path / "model"
    DinoModel.from_pretrained("model").save_pretrained(model)
    files = [tmp_path / name for name in ("n.csv", "sheet.png", "results.json", "n.parquet")]
    arguments = ("retrieve", "--index", "index", "--model", model, "--top", 3)
    code, out, err = dino(*arguments, "--output", files[0], "--sheet", files[1], "--json", files[2], "--record")
    assert code == 0, err
    assert out.splitlines()[0] == "index/blue/blue-index-0.png"
    assert "and 7 more queries" in out
    assert out.splitlines()[-2].startswith("mAP ")
    assert out.splitlines()[-1] == f"recorded in {model / 'evaluation_results.json'} and {files[2]}"

    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 * 3
    assert [row["rank"] for row in rows[:4]] == ["1", "2", "3", "1"]
    assert all(row["neighbour_label"] == row["neighbour"].split("/")[1] for row in rows)
    assert rows[0]["query"] == "index/blue/blue-index-0.png"
    assert out.splitlines()[1] == f"  {float(rows[0]['similarity']):.4f}  {rows[0]['neighbour']}"

    results = json.loads(files[2].read_text())
    assert json.loads((model / "evaluation_results.json").read_text()) == results
    assert [result["metric"] for result in results] == ["mAP", "mP@1", "mP@5", "mP@10"]
    first = [row["query_label"] == row["neighbour_label"] for row in rows if row["rank"] == "1"]
    assert results[1]["value"] == pytest.approx(100 * np.mean(first))
    assert f"mAP {results[0]['value']:.2f}" in out

    with Image.open(files[1]) as sheet:
        side, step = contact_sheet.TILE, contact_sheet.TILE + contact_sheet.CAPTION + contact_sheet.GAP
        header = sheet.height - 12 * step - contact_sheet.GAP  # the sentences above the rows
        assert header > 0
        for row in range(12):
            for column in range(3):
                left = 3 * contact_sheet.GAP + (column + 1) * (side + contact_sheet.GAP)
                right = rows[3 * row + column]["query_label"] == rows[3 * row + column]["neighbour_label"]
                color = sheet.getpixel((left + 1, header + contact_sheet.GAP + row * step + 1))
                assert f"#{bytes(color).hex()}" == (contact_sheet.RIGHT if right else contact_sheet.WRONG)

    assert dino(*arguments, "--output", files[3])[0] == 0
    assert pq.read_table(files[3])["neighbour"].to_pylist() == [row["neighbour"] for row in rows]


def test_ground_truth_of_the_revisited_kind(dino, here, tmp_path):
    """The command prints what the function says."""
    queries = {}
    for name in CLASSES:
        names = [f"{name}-index-{i}" for i in range(NUM_OF_CLASS)]
        queries[name] = {"easy": names[:1], "hard": names[1:3], "ignored": names[3:]}
    (tmp_path / "truth.json").write_text(json.dumps({"queries": queries}))
    found = search("index", "plain", "model", ground_truth=tmp_path / "truth.json", top=2)
    assert list(found.evaluations) == ["easy", "medium", "hard"]
    code, out, err = dino(
        "retrieve",
        "--index",
        "index",
        "--queries",
        "plain",
        "--model",
        "model",
        "--ground-truth",
        tmp_path / "truth.json",
    )
    assert code == 0, err
    assert not (here / "model" / "evaluation_results.json").exists()
    for setup, values in found.evaluations.items():
        assert f"{setup}: mAP {values['mAP']:.2f}, mP@1 {values['mP@1']:.2f}" in out


def test_images_in_tars_and_tables(here, tmp_path, folder):
    """They are found again for a sheet."""
    from datasets import Dataset
    from datasets import Image as ImageColumn

    names = sorted(map(str, folder.glob("index/*/*.png")))
    with tarfile.open(tmp_path / "index.tar", "w") as tar:
        for name in names:
            tar.add(name, arcname=f"in-tar/{name.rpartition('/')[2]}")
    Dataset.from_dict({"image": names}).cast_column("image", ImageColumn()).to_parquet(tmp_path / "index.parquet")
    sheets = []
    for source in ("index", tmp_path / "index.tar", tmp_path / "index.parquet"):
        sheets.append(tmp_path / f"{len(sheets)}.png")
        root = str(folder / "index")  # `to_parquet` has written paths, which are absolute
        search(str(source), "plain", "model", top=4, sheet=str(sheets[-1]), image_root=root)
    first, *others = [np.asarray(Image.open(sheet)) for sheet in sheets]
    for other in others:  # without labels, so without captions of them and colours; the pictures are the same
        np.testing.assert_array_equal(other, first)


def test_the_sheet_says_which_queries_it_shows(here, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "SHEET_ROWS", 4)
    found = search("index", model="model", top=2)
    labels = [found.queries.labels, found.index.labels]
    right = [[labels[0][q] == labels[1][i] for i in places] for q, places in enumerate(found.places.tolist())]
    rows = shown_queries(found)
    assert (len(rows), rows[0], rows[-1]) == (4, 0, len(right) - 1)
    which, share, features, *others = about_sheet(found)
    assert which.startswith(f"4 of {len(right)} queries, evenly spaced, each at the left of its 2 nearest neighbours")
    of_sheet, of_all = np.mean([right[row] for row in rows]), np.mean(right)
    assert share.startswith(f"Of the neighbours, {of_sheet:.0%} have the label of the query")
    assert share.endswith(f"of those of all queries, {of_all:.0%} have.")
    assert features == "Features: cls of model."
    assert others == [RANDOM_WEIGHTS]
    monkeypatch.setattr(retrieval, "SHEET_ROWS", 100)
    assert about_sheet(found)[0].startswith(f"All {len(right)} queries")


def test_a_path_that_features_name_is_not_opened_for_a_sheet(here, tmp_path, folder):
    """Features from elsewhere may name any file; only images of their source are shown."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    names = [*sorted(map(str, folder.glob("index/red/*.png")))[:2], str(secret)]
    rows = [{"path": name, "label": "red"} for name in names]
    write_features(tmp_path / "features", folder / "index", np.eye(3, 4), rows)
    with pytest.raises(ValueError, match=r"secret.png is no longer in .*index: no sheet without it"):
        retrieve(RetrieveOptions(index=str(tmp_path / "features"), top=2, sheet=str(tmp_path / "sheet.png")))
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--index index", "index has images, not features of `dino extract`: name a model with --model"),
        ("--index nothing --model model", "nothing is neither a folder, nor an image"),
        (
            "--index plain/green.png --model model --top 1",
            "the only image of the index is the query itself; add others",
        ),
        ("--index plain/green.png --model model", "the only image of the index is the query itself; add others"),
        ("--index index --model model --top 12", "top=12 must be between 1 and the 11 images"),
        ("--index index --model model --queries plain --top 0", "top=0 must be between 1 and the 12 images"),
        ("--index index --model model --features patches", "index has patches features, several vectors an image"),
        ("--index index --model model --features gem --gem-p 0", "gem_p=0.0 must be greater than 0"),
        ("--index index --model model --scales 1,half", "--scales 1,half must be numbers with commas between them"),
        ("--index index --model model --scales 0.1", "an image of 3x3 pixels is smaller than a patch of 8x8"),
        (
            "--index index --model model --resize stretch",
            "unknown resize 'stretch': allowed are crop, square, longest",
        ),
        ("--index index --model model --image-size 0 --resize square", "image_size=0 must be at least 1"),
        ("--index index --model model --search annoy", "unknown search 'annoy'"),
        ("--index index --model model --whiten-dim 12", "12 images with features 32 wide allow 1 to 11"),
        ("--index index --model model --whiten plain", "whitening to 32 dimensions: 3 images"),
        ("--index index --model model --output n.txt", "output n.txt must end with .csv or .parquet"),
        ("--index index --model model --sheet s.jpg", "sheet s.jpg must end with .png"),
        (
            "--index plain --model model --json r.json",
            "plain have no labels: put those of each class into a folder of its own, or name a --ground-truth",
        ),
        ("--index index/red --model model --json r.json", "have no labels"),
        ("--index one --model model --json r.json", "all images of one have the label 'red': two classes are needed"),
        ("--index queries --model model --json r.json", "no query has an image to find"),
        ("--index index --model model --ground-truth missing.json", "missing.json"),
        ("--index index --queries plain --model model --ground-truth a.json", "has no query plain/blue.png"),
        ("--index index --model model --ground-truth a.json", "a.json: no image of the queries is called 'red'"),
        ("--index index --queries plain --model model --ground-truth b.json", "index is called 'red-9'"),
        ("--index features --queries other", "other has patch_mean features, not cls"),
        ("--index features --queries wide", "has features of last_blocks=2, not of last_blocks=1"),
        ("--index damaged", "is damaged (could not verify page integrity"),
    ],
)
def test_a_users_mistake_is_one_line(dino, folder, tmp_path, monkeypatch, arguments, message):
    for name in ("model", "index", "plain", "queries"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "red").symlink_to(folder / "index" / "red")
    truth = {"red": {"positive": ["red-index-1"]}, "green": {"positive": ["green-index-0"]}}
    (tmp_path / "a.json").write_text(json.dumps({"queries": truth}))
    truth |= {"blue": {"positive": ["red-9"]}}
    (tmp_path / "b.json").write_text(json.dumps({"queries": truth}))
    for name, options in {
        "features": {},
        "other": {"features": "patch_mean"},
        "wide": {"last_blocks": 2},
        "damaged": {},
    }.items():
        if name in arguments.split():
            extract_index(name, **options)
    if "damaged" in arguments.split():
        shard = tmp_path / "damaged" / "features-000000-000000.parquet"
        shard.write_bytes(shard.read_bytes().replace(load_features("damaged")["feature"][3].tobytes(), b"\xff" * 128))
    code, _, err = dino("retrieve", *arguments.split())
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1
