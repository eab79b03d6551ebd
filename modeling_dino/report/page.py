# SPDX-License-Identifier: Apache-2.0
"""
Writes one HTML page about a folder of features: a map of the images, neighbours, duplicates, outliers, and labels.

The page is one file that loads nothing else. `page.js` and `page.css` are put into `page.html`, and its content
security policy allows only these two. Arrays are encoded in JSON. The thumbnails follow behind the script, so that the
map is drawn before they are read. Images are in the order of their level of detail, see [`levels_of_detail`].
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
from typing import Any

import numpy as np
import torch

from ..data.decoding import as_text
from ..data.sources import open_source
from ..evaluation.evaluation_data import EvaluationFeatures, Label, features_of, number_labels
from ..evaluation.options import FeatureOptions
from ..extraction.feature_files import open_features
from ..pictures.patch_images import RANDOM_WEIGHTS
from ..runtime.marked_files import MARK, check_marked, marked_file
from ..runtime.options import takes_options
from .feature_map import NEIGHBOURS, levels_of_detail, place_images
from .neighbourhoods import (
    cluster_images,
    duplicates_rule,
    leave_one_out,
    near_duplicates,
    nearest_others,
    neighbour_distances,
)
from .options import ReportOptions
from .thumbnails import atlases, image_key, read_thumbnails, side_for


PAGE_MARK = f"{MARK} report"
DEFAULT_OUTPUT = "report.html"  # in the folder of the features
MAX_CLUSTERS = 20  # by default
MAX_SKIPPED = 1000  # skipped images that the page names


@dataclass(frozen=True)
class ReportSummary:
    """Holds what the page shows; `missing` counts the images without a picture by the reason."""

    output: Path
    images: int
    rows: int
    duplicates: int
    accuracy: float | None
    missing: dict[str, int]
    side: int
    seconds: float
    notes: list[str]

    @property
    def remarks(self) -> list[str]:
        """Returns remarks on the thumbnails, a line each."""
        missing = [f"no picture of {count}: {reason}" for reason, count in self.missing.items()]
        return [f"note {note}" for note in self.notes] + missing

    def __str__(self) -> str:
        sample = f" of {self.rows}" if self.rows > self.images else ""
        accuracy = "" if self.accuracy is None else f", k-NN {self.accuracy:.1f} %"
        missing = f", {sum(self.missing.values())} without a picture" if self.missing else ""
        size = f"{self.output.stat().st_size / 1e6:.1f} MB, thumbnails of {self.side} px"
        return (
            f"{self.images}{sample} images{missing}, {self.duplicates} in groups of near-duplicates{accuracy}, "
            f"{self.seconds:.1f} s -> {self.output} ({size})"
        )


@takes_options(ReportOptions, command="report")
def write_report(options: ReportOptions) -> ReportSummary:
    """
    Returns:
        what is on the page, and where it is.

    Raises:
        ValueError: if the folder has no features of images, or the output is a file of something else.
        OSError: if the page cannot be written; the file that was there before is kept.
    """
    started = time.perf_counter()
    open_features(options.folder)  # raises ValueError for a folder of images
    output = Path(options.folder, DEFAULT_OUTPUT) if options.output is None else Path(options.output)
    check_marked(output, PAGE_MARK)
    shown, rows = load_sample(options)
    page, order = analyse_images(shown, options)
    side = side_for(len(order))
    pictures, missing, notes = load_thumbnails(shown, order, side, options)
    page["thumbnails"] = {"side": side, "missing": missing}
    page["title"] = as_text(os.path.join(*Path(options.folder).resolve().parts[-2:]))
    page["facts"] = describe_run(shown, rows, page, notes)
    page["warning"] = RANDOM_WEIGHTS if shown.settings.get("random_weights") else None
    page["skipped"] = dict(list(shown.skipped.items())[:MAX_SKIPPED])
    output.parent.mkdir(parents=True, exist_ok=True)
    with marked_file(output, PAGE_MARK) as partial, open(partial, "w", encoding="utf-8") as file:
        file.writelines(render_page(page, () if pictures is None else atlases(pictures)))
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


def load_sample(options: ReportOptions) -> tuple[EvaluationFeatures, int]:
    """
    Returns the features of all images, or of a random sample if they are too many; and the number of all images.
    Raises ValueError if there are no images, or their features cannot be compared.
    """
    images = features_of(str(options.folder), options=FeatureOptions(features=options.features))
    rows = len(images.names)
    if not rows:
        raise ValueError(f"there are no images in {options.folder}")
    if rows > options.max_images:
        sample = np.random.default_rng(0).choice(rows, options.max_images, replace=False)
        images = images.subset(np.sort(sample).tolist())
    return images, rows


def analyse_images(shown: EvaluationFeatures, options: ReportOptions) -> tuple[dict[str, Any], np.ndarray]:
    """Returns what the page shows of the images, in the order in which it shows them; and this order."""
    similarities, neighbours = nearest_others(shown.features, NEIGHBOURS, options.progress)
    groups = near_duplicates(similarities, neighbours, options.duplicates)
    rule = duplicates_rule(similarities, options.duplicates)
    places = place_images(shown.features, similarities, neighbours)
    order, levels = levels_of_detail(places)
    rank = np.argsort(order)
    similarities, neighbours = similarities[:, : options.k], neighbours[:, : options.k]
    num_clusters = options.num_clusters or min(MAX_CLUSTERS, max(1, round((len(order) / 2) ** 0.5)))
    names = [str(shown.names[image]) for image in order]
    folder, slash, _ = os.path.commonprefix(names).rpartition("/")  # noqa: RUF071 (some may be absolute, and some not)
    page = {
        "root": folder + slash,
        "names": [name.removeprefix(folder + slash) for name in names],
        "places": encode_array(places[order]),
        "levels": levels,
        "k": neighbours.shape[1],
        "neighbours": encode_array(rank[neighbours.numpy()][order].astype("uint32")),
        "similarities": encode_array(similarities.numpy()[order]),
        "distances": encode_array(neighbour_distances(similarities).numpy()[order]),
        "duplicates": {"rule": rule, "groups": [rank[group].tolist() for group in groups]},
        "clusters": encode_array(cluster_images(shown.features, num_clusters)[order].astype("int32")),
        **classify_images(shown.features, shown.labels, options.k, order),
    }
    return page, order


def classify_images(
    features: torch.Tensor, labels: list[Label | None] | None, k: int, order: np.ndarray
) -> dict[str, Any]:
    """
    Returns the classes, the class of each image, and the class that its neighbours predict; None without labels.

    An image without a label has the class -1, and so has the prediction for it. The accuracy is in percent.
    """
    if labels is None or all(label is None for label in labels):
        return {"classes": None, "labels": None, "knn": None}
    has_label = torch.tensor([label is not None for label in labels])
    classes, [present] = number_labels([label for label in labels if label is not None])
    numbers, predicted = torch.full((2, len(labels)), -1)
    numbers[has_label] = present
    predicted[has_label] = leave_one_out(features[has_label], present, k)
    voted = predicted >= 0
    accuracy = (predicted == numbers)[voted].double().mean().item() * 100 if voted.any() else None
    labels, predicted = (encode_array(array.numpy()[order].astype("int32")) for array in (numbers, predicted))
    return {
        "classes": list(map(str, classes)),
        "labels": labels,
        "knn": {"accuracy": accuracy, "predicted": predicted},
    }


def load_thumbnails(
    shown: EvaluationFeatures, order: np.ndarray, side: int, options: ReportOptions
) -> tuple[np.ndarray | None, dict[str, list[int]], list[str]]:
    """Returns the thumbnails in order, the places without one by the reason, and notes about the images."""
    settings = shown.settings
    name = settings["images"] if options.images is None else options.images
    names = ("streaming", "image_column", "label_column", "image_root")
    try:
        source = open_source(name, **{option: settings.get(option) for option in names})
    except (ValueError, OSError) as error:
        if options.images is not None:
            raise
        note = f"there are no thumbnails, as the images are gone: {error}; --images says where they are now"
        return None, {"the images are gone": list(range(len(order)))}, [note]
    notes = []
    if source.fingerprint() != settings["images_fingerprint"]:
        notes.append(
            f"{as_text(name)} differs in paths or sizes, in content or labels, from what was extracted: thumbnails "
            "show what is there now"
        )
    places: dict[str, list[int]] = {}
    for place, image in enumerate(order):
        # by its name at the extraction: a source that has moved has the same paths in it
        places.setdefault(image_key(shown.names[image], settings["images"]), []).append(place)
    pictures, missing = read_thumbnails(source, name, places, side, options.num_workers, options.progress)
    reasons: dict[str, list[int]] = {}
    for place, reason in missing.items():
        reasons.setdefault(reason, []).append(place)
    return pictures, reasons, notes


def describe_run(shown: EvaluationFeatures, rows: int, page: dict, notes: list[str]) -> list[tuple[str, str]]:
    """Returns what the page says about the run, as names and values."""
    settings, num_images = shown.settings, len(shown.names)
    size = settings["transform"].get("crop_size") or {}
    kind = f"{shown.kind}, {shown.features.shape[1]} numbers"
    if shown.last_blocks > 1:
        kind += f", of the last {shown.last_blocks} blocks"
    found = {
        "Images": f"{num_images}, a random sample of {rows}" if rows > num_images else str(rows),
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
        "Neighbours": f"the {page['k']} images of the greatest cosine similarity, compared with all images",
        "Map": "t-SNE of the cosine similarities, with the gaps between groups narrowed",
        "Thumbnails": f"{page['thumbnails']['side']} px",
        **{f"Note {number}": note for number, note in enumerate(notes, 1)},
    }
    return [(name, str(value)) for name, value in found.items() if value]


def encode_array(array: np.ndarray) -> str:
    """Returns the numbers, little-endian, in base64."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def render_page(page: dict[str, Any], atlases: Iterable[bytes]) -> Iterator[str]:
    """Yields the text of the page in pieces, the thumbnails last."""
    here = Path(__file__).parent
    style, script = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    start, end = (here / "page.html").read_text(encoding="utf-8").split("$atlases")
    yield Template(start).substitute(
        mark=PAGE_MARK,
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
    """Returns the hash by which a content security policy allows a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def script_json(value: Any) -> str:
    """Returns JSON in which nothing can end the script element that holds it, or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
