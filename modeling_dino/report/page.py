# SPDX-License-Identifier: Apache-2.0
"""One HTML page about a folder of features: a map of the images, their neighbours, duplicates, outliers, and labels.

The page is a file of its own, which asks nobody for anything: its script and style (`page.js` and `page.css`, put into
`page.html`) are the only ones that its content security policy lets run, numbers are packed in JSON, and the
pictures follow behind the script, so that the map is there before they are. Images come in the order of their level of
detail, see [`levels_of_detail`].
"""

import base64
import hashlib
import html
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import torch

from ..data.decoding import as_text
from ..data.image_source import ImageSource
from ..data.sources import open_source
from ..evaluation.evaluation_data import EvaluationFeatures, Label, features_of, number_labels
from ..evaluation.options import FeatureOptions
from ..extraction.feature_files import FeatureFolder
from ..runtime.extras import require
from ..runtime.whole_files import whole_file
from .feature_map import NEIGHBOURS, levels_of_detail, place_images
from .neighbourhoods import clusters, distances, leave_one_out, near_duplicates, nearest_others
from .thumbnails import MAX_IMAGES, atlases, image_key, read_thumbnails, side_for


if TYPE_CHECKING:
    import numpy as np

DEFAULT_OUTPUT = "report.html"  # in the folder of the features
DEFAULT_K = 20  # "usually working the best": https://github.com/facebookresearch/dino/blob/7c446df/eval_knn.py#L214
DEFAULT_DUPLICATES = 0.95
DEFAULT_MAX_IMAGES = 20_000
MAX_CLUSTERS = 20  # if not told otherwise
MAX_REMARKS = 1000  # skipped images that are named


@dataclass(frozen=True)
class ReportSummary:
    """What the page shows."""

    output: Path
    images: int
    rows: int
    duplicates: int
    accuracy: float | None
    missing: dict[str, int]
    side: int
    seconds: float
    notes: list[str]

    def __str__(self) -> str:
        sample = f" of {self.rows}" if self.rows > self.images else ""
        accuracy = "" if self.accuracy is None else f", k-NN {self.accuracy:.1f} %"
        missing = f", {sum(self.missing.values())} without a picture" if self.missing else ""
        size = f"{self.output.stat().st_size / 1e6:.1f} MB, thumbnails of {self.side} px"
        return (
            f"{self.images}{sample} images{missing}, {self.duplicates} in groups of near-duplicates{accuracy}, "
            f"{self.seconds:.1f} s -> {self.output} ({size})"
        )


def write_report(
    folder: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    features: str | None = None,
    images: str | None = None,
    k: int = DEFAULT_K,
    num_clusters: int | None = None,
    duplicates: float = DEFAULT_DUPLICATES,
    max_images: int = DEFAULT_MAX_IMAGES,
    num_workers: int | None = None,
    progress: bool = True,
) -> ReportSummary:
    """
    Writes the page.

    Args:
        folder: of features, see [`extract_features`].
        output: file to write, `report.html` in the folder by default; what is there is replaced.
        features: which kind, where there are several, such as `"cls"`.
        images: where the images are now, if they have moved since; see [`open_source`].
        k: neighbours that are shown, vote, and say how far out an image is.
        num_clusters: of k-means; by default sqrt(images / 2), at most 20.
        duplicates: the cosine from which on two images are near-duplicates.
        max_images: if there are more, so many are drawn by lot.
        num_workers: processes that read images; by default one a spare core.
        progress: show progress bars.

    Raises:
        ValueError: if there are no features of images there, or an argument cannot work.
        OSError: if the page cannot be written; what was there before still is.
    """
    started = time.perf_counter()
    _check(k, num_clusters, duplicates, max_images)
    FeatureFolder.read(folder)  # features, not images
    output = Path(folder, DEFAULT_OUTPUT) if output is None else Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file to write")
    shown, rows = load_images(folder, features, max_images)
    page, order = describe_images(shown, k, num_clusters, duplicates, progress)
    side = side_for(len(order))
    pictures, missing, notes = pictures_of(shown, order, images, side, num_workers, progress)
    page["thumbnails"] = {"side": side, "missing": missing}
    page["title"] = as_text(os.path.join(*Path(folder).resolve().parts[-2:]))
    page["facts"] = facts(shown, rows, page, notes)
    page["skipped"] = dict(list(shown.skipped.items())[:MAX_REMARKS])
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(render(page, () if pictures is None else atlases(pictures)))
    return ReportSummary(
        output=output,
        images=len(order),
        rows=rows,
        duplicates=sum(map(len, page["duplicates"]["groups"])),
        accuracy=page["knn"] and page["knn"]["accuracy"],
        missing={reason: len(places) for reason, places in missing.items()},
        side=side,
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def _check(k: int, num_clusters: int | None, duplicates: float, max_images: int):
    if not 1 <= k <= NEIGHBOURS:
        raise ValueError(f"k={k} must be between 1 and {NEIGHBOURS}")
    if num_clusters is not None and num_clusters < 1:
        raise ValueError(f"{num_clusters} clusters: there must be at least 1")
    if not -1 <= duplicates <= 1:
        raise ValueError(f"near-duplicates from a cosine of {duplicates} on: it must be between -1 and 1")
    if not 1 <= max_images <= MAX_IMAGES:
        raise ValueError(f"max_images={max_images} must be between 1 and {MAX_IMAGES}, which a browser can show")


def load_images(folder: str | os.PathLike, kind: str | None, max_images: int) -> tuple[EvaluationFeatures, int]:
    """
    The images to show, all or a sample, and how many there are.

    Raises:
        ValueError: if there are none, or they have no features that can be compared.
    """
    np = require("numpy")
    images = features_of(str(folder), options=FeatureOptions(features=kind))
    rows = len(images.names)
    if not rows:
        raise ValueError(f"there are no images in {folder}")
    if rows > max_images:
        images = images.subset(np.sort(np.random.default_rng(0).choice(rows, max_images, replace=False)).tolist())
    return images, rows


def classes_of(labels: list[Label | None] | None) -> tuple[list[str] | None, torch.Tensor | None]:
    """Names of classes, in order, and which each image has, -1 where it has none; None if no image has one."""
    if labels is None or all(label is None for label in labels):
        return None, None
    classes, [present] = number_labels([label for label in labels if label is not None])
    numbers = torch.full((len(labels),), -1)
    numbers[[label is not None for label in labels]] = present
    return list(map(str, classes)), numbers


def describe_images(
    shown: EvaluationFeatures, k: int, num_clusters: int | None, duplicates: float, progress: bool
) -> "tuple[dict[str, Any], np.ndarray]":
    """Everything about the images that the page shows, in the order in which it shows them, and this order."""
    np = require("numpy")
    similarities, neighbours = nearest_others(shown.features, NEIGHBOURS, progress)
    groups = near_duplicates(similarities, neighbours, duplicates)
    places = place_images(shown.features, similarities, neighbours)
    order, levels = levels_of_detail(places)
    rank = np.argsort(order)
    similarities, neighbours = similarities[:, :k], neighbours[:, :k]
    if num_clusters is None:
        num_clusters = min(MAX_CLUSTERS, max(1, round((len(order) / 2) ** 0.5)))
    names = [str(shown.names[image]) for image in order]
    folder, slash, _ = os.path.commonprefix(names).rpartition("/")  # noqa: RUF071 (some may be absolute, and some not)
    root = folder + slash
    classes, labels = classes_of(shown.labels)
    page = {
        "root": root,
        "names": [name.removeprefix(root) for name in names],
        "places": packed(places[order]),
        "levels": levels,
        "k": neighbours.shape[1],
        "neighbours": packed(rank[neighbours.numpy()][order].astype("uint32")),
        "similarities": packed(similarities.numpy()[order]),
        "distances": packed(distances(similarities).numpy()[order]),
        "duplicates": {"threshold": duplicates, "groups": [rank[group].tolist() for group in groups]},
        "clusters": packed(clusters(shown.features, num_clusters)[order].astype("int32")),
        "classes": classes,
        "labels": None if labels is None else packed(labels.numpy()[order].astype("int32")),
        "knn": None if labels is None else classification(shown.features, labels, k, order),
    }
    return page, order


def classification(features: torch.Tensor, labels: torch.Tensor, k: int, order: "np.ndarray") -> dict[str, Any]:
    """Which class the neighbours of each image give it, -1 if it has none itself; how many are right, in percent."""
    has_label = labels >= 0
    predicted = torch.full_like(labels, -1)
    predicted[has_label] = leave_one_out(features[has_label], labels[has_label], k)
    voted = predicted >= 0
    right = (predicted == labels)[voted].double().mean().item() * 100 if voted.any() else None
    return {"accuracy": right, "predicted": packed(predicted.numpy()[order].astype("int32"))}


def pictures_of(
    shown: EvaluationFeatures,
    order: "np.ndarray",
    images: str | None,
    side: int,
    num_workers: int | None,
    progress: bool,
) -> "tuple[np.ndarray | None, dict[str, list[int]], list[str]]":
    """The thumbnails in order, reasons why there are none and of which images, and what there is to know."""
    settings = shown.settings
    name = settings["images"] if images is None else images
    try:
        source = open_images(settings, name)
    except (ValueError, OSError) as error:
        if images is not None:
            raise
        note = f"no thumbnails, for the images are gone: {error}; --images says where they are now"
        return None, {"the images are gone": list(range(len(order)))}, [note]
    notes = []
    if source.fingerprint() != settings["images_fingerprint"]:
        notes.append(
            f"{as_text(name)} differs in paths or sizes from what was extracted: thumbnails show what is there now"
        )
    places: dict[str, list[int]] = {}
    for place, image in enumerate(order):
        # by the name they had then: a source that has moved has the same paths in it
        places.setdefault(image_key(shown.names[image], settings["images"]), []).append(place)
    pictures, missing = read_thumbnails(source, name, places, side, num_workers, progress)
    reasons: dict[str, list[int]] = {}
    for place, reason in missing.items():
        reasons.setdefault(reason, []).append(place)
    return pictures, reasons, notes


def open_images(settings: dict, name: str) -> ImageSource:
    """The source of the images, by the settings of the extraction."""
    names = ("streaming", "image_column", "label_column")
    return open_source(name, **{option: settings[option] for option in names})


def facts(shown: EvaluationFeatures, rows: int, page: dict, notes: list[str]) -> list[tuple[str, str]]:
    """What the page says about the run, as names and values."""
    settings, num_images = shown.settings, len(shown.names)
    size = settings["transform"].get("crop_size") or {}
    kind = f"{shown.kind}, {shown.features.shape[1]} numbers"
    if shown.last_blocks > 1:
        kind += f", of the last {shown.last_blocks} blocks"
    found = {
        "Images": f"{num_images}, drawn by lot from {rows}" if rows > num_images else str(rows),
        "Skipped at extraction": str(len(shown.skipped)),
        "Source": settings["images"],
        "Names begin with": page["root"],
        "Model": settings["model"],
        "Revision": settings["model_revision"],
        "Model fingerprint": settings["model_fingerprint"],
        "Features": kind,
        "Image size": " x ".join(str(size[side]) for side in ("height", "width") if side in size),
        "Arithmetic": f"{settings['dtype']} on {settings['device']}",
        "Images fingerprint": settings["images_fingerprint"],
        **{f"{name} version": version for name, version in settings["versions"].items()},
        "Neighbours": f"the {page['k']} of the greatest cosine, of all pairs",
        "Map": "t-SNE of these cosines",
        "Thumbnails": f"{page['thumbnails']['side']} px",
        **{f"Note {number}": note for number, note in enumerate(notes, 1)},
    }
    return [(name, str(value)) for name, value in found.items() if value]


def packed(array: "np.ndarray") -> str:
    """Numbers as base64, little-endian."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def render(page: dict[str, Any], atlases: Iterable[bytes]) -> Iterator[str]:
    """The text of the page, piece by piece: all but the pictures first."""
    here = Path(__file__).parent
    style, script = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    start, end = (here / "page.html").read_text(encoding="utf-8").split("$atlases")
    yield Template(start).substitute(
        title=html.escape(page["title"]),
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        data=script_json(page),
    )
    for number, atlas in enumerate(atlases):
        yield f'<script type="text/plain" id="atlas-{number}">{base64.b64encode(atlas).decode()}</script>\n'
    yield end


def content_hash(text: str) -> str:
    """As a content security policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element, or begins a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


__all__ = ["ReportSummary", "write_report"]
