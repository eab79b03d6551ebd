# SPDX-License-Identifier: Apache-2.0
"""Image retrieval: the images of an index most like each query, written, drawn and evaluated.

The original's two protocols, as options:

    https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py
        --resize whole --image-size 224 [--scales 1,0.70711,0.5] --ground-truth gnd_roxford5k.pkl
    https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py
        --resize square --image-size 320 --features cls_gem --whiten IMAGES --ground-truth FILE
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..extraction.whitening import learn_whitening
from ..hub.evaluation_results import record_evaluation_results
from ..runtime.extras import require
from ..runtime.processes import processes
from ..runtime.whole_files import whole_file
from .contact_sheet import RIGHT, UNKNOWN, WRONG, Tile, draw_contact_sheet
from .evaluation_data import EvaluationFeatures, Label, check_pair, features_of
from .ground_truth import GroundTruth, read_ground_truth
from .ranking import UNLABELLED, NothingToEvaluate, evaluate_ground_truth, evaluate_labels, search_index


if TYPE_CHECKING:
    import pyarrow as pa

TOP = 10
SHOWN, SHEET_ROWS = 5, 12  # queries of which the neighbours are printed, and drawn
OF_INDEX = ("last_blocks", "dtype", "gem_p", "scales", "resize", "image_size")  # settings that queries take over


@dataclass(frozen=True)
class Retrieval:
    """
    What was found.

    Args:
        index: the images that were searched.
        queries: those that were looked for; the same as `index` if each was.
        similarities: cosines, (Q, top), the greatest first.
        places: of these neighbours in the index, (Q, top).
        evaluations: of each setup (one without a name, or easy, medium and hard), `mAP`, `mP@1`, … in percent and the
            number of `queries`.
        remarks: what else there is to say, a line each.
    """

    index: EvaluationFeatures
    queries: EvaluationFeatures
    similarities: torch.Tensor
    places: torch.Tensor
    evaluations: dict[str, dict[str, float]]
    remarks: list[str]

    def __str__(self) -> str:
        lines = []
        for name, similarities, places in zip(self.queries.names[:SHOWN], self.similarities, self.places):
            lines.append(str(name))
            lines += [f"  {s:.4f}  {self.index.names[i]}" for s, i in zip(similarities.tolist(), places.tolist())]
        if len(self.queries.names) > SHOWN:
            lines.append(f"and {len(self.queries.names) - SHOWN} more queries: --output FILE writes all")
        for setup, values in self.evaluations.items():
            metrics = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if name != "queries")
            lines.append(f"{setup}: {metrics}".removeprefix(": ") + f" (%, {values['queries']} queries)")
        return "\n".join([*lines, *self.remarks])


def retrieve(
    index: str,
    queries: str | None = None,
    model: str | None = None,
    *,
    top: int | None = None,
    ground_truth: str | None = None,
    whiten: str | None = None,
    whiten_dim: int | None = None,
    search: str = "auto",
    output: str | os.PathLike | None = None,
    sheet: str | os.PathLike | None = None,
    json_file: str | os.PathLike | None = None,
    dataset: str | None = None,
    **extraction,
) -> Retrieval | None:
    """
    Finds the images of an index most like each query, or like each of its own among the others.

    Where both sides have labels, or there is a ground truth, it evaluates the rankings of all images, too.

    Args:
        index, queries: folders of `dino extract`, or images: see [`features_of`]. A file that is in both is not its
            own neighbour.
        model: folder or hub id; not needed with features, nor for queries of features of a model that is where it was.
        top: neighbours of each query; by default 10, or as many as there are.
        ground_truth: a file of [`read_ground_truth`]. It must have each of `queries`, and decides alone what they
            find; where the images of the index are the queries, it may leave some out.
        whiten: images or features to learn PCA whitening from; by default, where `whiten_dim` is given, the index.
        whiten_dim: dimensions to keep, all by default.
        search: see [`search_index`].
        output: a .csv or .parquet file for all neighbours.
        sheet: a .png file for pictures of some queries and their neighbours.
        json_file: for the results of the evaluation, which also go beside the model, if it is in a folder.
        dataset: its name in the results, by default `index`.
        extraction: see [`features_of`].

    Returns:
        what was found; None on processes other than the main one.

    Raises:
        ValueError, OSError, ImportError: if an argument cannot work, or there is nothing to evaluate for `json_file`.
    """
    check_files(output, sheet)
    truth = None if ground_truth is None else read_ground_truth(ground_truth)
    found, others = load_features_of(index, [queries, whiten], model, extraction)
    if not processes().is_main_process:
        return None
    asked, features = others.get(queries, found), [others.get(queries, found).features, found.features]
    if whiten is not None or whiten_dim is not None:
        features = list(map(learn_whitening(others.get(whiten, found).features, whiten_dim), features))
    own = torch.arange(len(found.names)) if queries is None else places_of(asked.names, found.names)
    top = min(TOP, len(found.names) - bool((own >= 0).any())) if top is None else top
    similarities, places = search_index(*features, top, own, search)
    try:
        evaluations, remarks = evaluate(asked, found, features, own, truth), []
    except NothingToEvaluate as reason:
        if truth is not None or json_file is not None:
            raise
        evaluations, remarks = {}, [f"not evaluated: {reason}"]
    retrieval = Retrieval(found, asked, similarities, places, evaluations, remarks)
    if evaluations:
        whitened_to = features[0].shape[1] if features[0] is not asked.features else None
        results = results_of(retrieval, dataset or index, whitened_to, by_labels=truth is None)
        remarks.append(record_evaluation_results(model, json_file, results))
    if output is not None:
        write_neighbours(retrieval, Path(output))
    if sheet is not None:
        draw_contact_sheet(Path(sheet), rows_of_sheet(retrieval), asked, found)
    return retrieval


def check_files(output: str | os.PathLike | None, sheet: str | os.PathLike | None):
    """
    Raises:
        ValueError: if a file is to be of a kind that is not written.
    """
    for name, file, suffixes in (("output", output, WRITERS), ("sheet", sheet, (".png",))):
        if file is not None and Path(file).suffix not in suffixes:
            raise ValueError(f"{name} {file} must end with {' or '.join(suffixes)}")


def load_features_of(
    index: str, others: Sequence[str | None], model: str | None, extraction: dict
) -> tuple[EvaluationFeatures, dict[str, EvaluationFeatures]]:
    """
    The features of an index, and of other sources by their names, made like these.

    Raises:
        ValueError: if they are of another kind.
    """
    found = features_of(index, model, **extraction)
    settings = {name: found.settings[name] for name in OF_INDEX if name in found.settings}
    extraction = {**extraction, **settings, "features": found.kind}
    parts = {}
    for source in dict.fromkeys(others):  # in the same order in all processes
        if source is not None:
            parts[source] = features_of(source, model or found.settings["model"], **extraction)
            check_pair(found, parts[source])
    return found, parts


def places_of(names: Sequence[str | int], index_names: Sequence[str | int]) -> torch.Tensor:
    """Where each image is in the index, (Q,), -1 where it is not; in tars and tables others may have the same name."""
    places = {os.path.abspath(name): place for place, name in enumerate(index_names) if isinstance(name, str)}
    return torch.tensor(
        [
            places.get(os.path.abspath(name), -1) if isinstance(name, str) and os.path.isfile(name) else -1
            for name in names
        ]
    )


def evaluate(
    asked: EvaluationFeatures,
    found: EvaluationFeatures,
    features: Sequence[torch.Tensor],
    own: torch.Tensor,
    truth: GroundTruth | None,
) -> dict[str, dict[str, float]]:
    """
    Evaluates rankings of the index by ground truth, or else by labels.

    Args:
        features: of queries and index, as they are compared.

    Raises:
        NothingToEvaluate: if there is neither, or nothing to find by it.
        ValueError: if the ground truth is of other images.
    """
    if truth is not None:
        by_place = truth.find(asked.names, found.names)
        unknown = set(range(len(asked.names))) - set(by_place.places)
        if asked is not found and unknown:
            raise ValueError(f"{truth.source} has no query {asked.names[min(unknown)]}")
        return evaluate_ground_truth(*features, by_place, own if asked is found else None)
    for part in (asked, found):
        if part.labels is None:
            raise NothingToEvaluate(f"the images of {part.source} have no labels, and there is no --ground-truth")
    classes = {label for label in found.labels if label is not None}
    if len(classes) == 1:
        raise NothingToEvaluate(f"all images of {found.source} have the label {classes.pop()!r}")
    numbers: dict[Label | None, int] = {None: UNLABELLED}
    labels = [
        torch.tensor([numbers.setdefault(label, len(numbers)) for label in part.labels]) for part in (asked, found)
    ]
    return {"": evaluate_labels(features[0], labels[0], features[1], labels[1], own)}


def results_of(retrieval: Retrieval, dataset: str, whitened_to: int | None, by_labels: bool) -> list[dict]:
    """The evaluations as [`record_evaluation_results`] takes them."""
    index, queries = retrieval.index, retrieval.queries
    how = {
        "average_precision": "plain" if by_labels else "trapezoidal",
        "queries": "each of the index" if queries is index else queries.source,
        "features": index.kind,
        **{name: index.settings.get(name) for name in OF_INDEX},
        "whitened_to": whitened_to,
    }
    return [
        {
            "task": "image-retrieval",
            "dataset": dataset,
            "metric": metric,
            "metric_name": f"{metric}, {setup}".removesuffix(", "),
            "value": round(value, 4),
            **{name: fact for name, fact in how.items() if fact is not None},
        }
        for setup, values in retrieval.evaluations.items()
        for metric, value in values.items()
        if metric != "queries"
    ]


def _write_csv(table: "pa.Table", file: Path):
    require("pyarrow.csv").write_csv(table, file)


def _write_parquet(table: "pa.Table", file: Path):
    require("pyarrow.parquet").write_table(table, file)


WRITERS = {".csv": _write_csv, ".parquet": _write_parquet}


def write_neighbours(retrieval: Retrieval, file: Path):
    """
    Writes a row for each neighbour: `query`, `rank` (from 1), `neighbour`, `similarity`, and where there are labels
    `query_label` and `neighbour_label`.

    Raises:
        OSError: if it cannot be written.
    """
    index, queries, top = retrieval.index, retrieval.queries, retrieval.places.shape[1]
    rows = [row for row in range(len(queries.names)) for _ in range(top)]
    places = retrieval.places.flatten().tolist()
    columns = {
        "query": [queries.names[row] for row in rows],
        "rank": list(range(1, top + 1)) * len(queries.names),
        "neighbour": [index.names[place] for place in places],
        "similarity": retrieval.similarities.flatten().numpy(),
    }
    if queries.labels is not None:
        columns["query_label"] = [queries.labels[row] for row in rows]
    if index.labels is not None:
        columns["neighbour_label"] = [index.labels[place] for place in places]
    with whole_file(file) as partial:
        WRITERS[file.suffix](require("pyarrow").table(columns), partial)


def rows_of_sheet(retrieval: Retrieval) -> list[tuple[Tile, list[Tile]]]:
    """Some queries, evenly spread over all, with their neighbours; in colour where labels say which are right."""
    index, queries = retrieval.index, retrieval.queries
    rows = []
    for row in torch.linspace(0, len(queries.names) - 1, min(SHEET_ROWS, len(queries.names))).long().tolist():
        label = None if queries.labels is None else queries.labels[row]
        tiles = []
        for similarity, place in zip(retrieval.similarities[row].tolist(), retrieval.places[row].tolist()):
            other = None if index.labels is None else index.labels[place]
            color = UNKNOWN if label is None or other is None else RIGHT if label == other else WRONG
            tiles.append(Tile(index.names[place], f"{similarity:.4f}", color))
        caption = Path(str(queries.names[row])).name if label is None else str(label)
        rows.append((Tile(queries.names[row], caption[-18:]), tiles))
    return rows


__all__ = ["Retrieval", "retrieve"]
