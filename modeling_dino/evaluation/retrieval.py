# SPDX-License-Identifier: Apache-2.0
"""`dino retrieve`: finds the images of an index most like each query, writes, draws and evaluates them.

The original's two protocols, as options:

    https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py
        --resize longest --image-size 224 [--scales 1,0.70711,0.5] --ground-truth gnd_roxford5k.json
    https://github.com/facebookresearch/dino/blob/7c446df/eval_copy_detection.py
        --resize square --image-size 320 --features cls_gem --whiten IMAGES --ground-truth FILE
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..extraction.principal_components import learn_whitening
from ..hub.evaluation_results import check_results_file, record_evaluation_results
from ..pictures.patch_images import RANDOM_WEIGHTS
from ..runtime.extras import require
from ..runtime.marked_files import check_marked, marked_file
from ..runtime.options import takes_options
from ..runtime.processes import processes
from .contact_sheet import MAX_COLUMNS, RIGHT, SHEET_MARK, WRONG, Tile, draw_contact_sheet
from .evaluation_data import EvaluationFeatures, Label, check_pair, features_of, no_labels, one_class, remarks_on
from .ground_truth import GroundTruth, read_ground_truth
from .options import RetrieveOptions
from .ranking import UNLABELLED, NothingToEvaluate, evaluate_ground_truth, evaluate_labels, search_index


NEIGHBOUR_COLUMNS = '"query","rank","neighbour","similarity"'  # begins tables of neighbours
DEFAULT_TOP = 10
SHOWN, SHEET_ROWS = 5, 12  # numbers of queries whose neighbours are printed, and drawn
OF_INDEX = ("last_blocks", "dtype", "gem_p", "scales", "resize", "image_size")  # settings that queries take over


@dataclass(frozen=True)
class Retrieval:
    """
    The neighbours of queries, and how good the rankings are.

    Args:
        index, queries: the features that were searched, and those that were looked for; the same object if each image
            of the index was a query.
        similarities: cosines with the neighbours, (Q, top), the greatest first.
        places: places of the neighbours in the index, (Q, top).
        evaluations: for each setup (one without a name, or easy, medium and hard) `mAP`, `mP@1`, … in percent and the
            number of `queries`.
        notes: lines that say where the results are recorded, or why there are none.
    """

    index: EvaluationFeatures
    queries: EvaluationFeatures
    similarities: torch.Tensor
    places: torch.Tensor
    evaluations: dict[str, dict[str, float]]
    notes: list[str]

    @property
    def remarks(self) -> list[str]:
        """Lines about images that could not be read or have no label."""
        return remarks_on(self.index, self.queries)

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
        return "\n".join([*lines, *self.notes])


@takes_options(RetrieveOptions, command="retrieve")
def retrieve(options: RetrieveOptions) -> Retrieval | None:
    """
    A file that is both in the index and a query is not its own neighbour. Queries of features need no model where that
    of the index is still in its place. A ground truth must have each of the queries, unless these are the images of
    the index.

    Returns:
        what was found; None on processes other than the main one.

    Raises:
        ValueError, OSError, ImportError: if an option cannot work, or there is nothing to evaluate where results
            are to be recorded.
    """
    for name, suffixes in (("output", (".csv", ".parquet")), ("sheet", (".png",))):
        file = getattr(options, name)
        if file is not None and Path(file).suffix not in suffixes:
            raise ValueError(f"{name} {file} must end with {' or '.join(suffixes)}")
    check_marked(options.output, NEIGHBOUR_COLUMNS)
    check_marked(options.sheet, SHEET_MARK)
    check_results_file(options.json_file)
    truth = None if options.ground_truth is None else read_ground_truth(options.ground_truth)
    found, others = load_features_of(options)
    if not processes().is_main_process:
        return None
    asked = others.get(options.queries, found)
    features = [asked.features, found.features]
    is_whitened = options.whiten is not None or options.whiten_dim is not None
    if is_whitened:
        learned_from = others.get(options.whiten, found)
        features = list(map(learn_whitening(learned_from.features, options.whiten_dim), features))
    own = torch.arange(len(found.names)) if asked is found else places_of(asked.names, found.names)
    top = options.top
    if top is None:
        top = min(DEFAULT_TOP, len(found.names) - bool((own >= 0).any()))
    similarities, places = search_index(*features, top, own, options.search)
    evaluations, notes = {}, []
    try:
        evaluations = evaluate(asked, found, features, own, truth)
    except NothingToEvaluate as reason:
        if truth is not None or options.json_file is not None or options.record:
            raise
        notes = [f"not evaluated: {reason}"]
    retrieval = Retrieval(found, asked, similarities, places, evaluations, notes)
    if evaluations:
        whitened_to = features[0].shape[1] if is_whitened else None
        results = results_of(retrieval, options.dataset or options.index, whitened_to, by_labels=truth is None)
        recorded = record_evaluation_results(options.record_folder, options.json_file, results)
        retrieval = replace(retrieval, notes=recorded)
    if options.output is not None:
        write_neighbours(retrieval, Path(options.output))
    if options.sheet is not None:
        draw_contact_sheet(Path(options.sheet), rows_of_sheet(retrieval), asked, found, about_sheet(retrieval))
    return retrieval


def load_features_of(options: RetrieveOptions) -> tuple[EvaluationFeatures, dict[str, EvaluationFeatures]]:
    """
    Loads the features of the index, and like these those of the queries and of what whitening is learned from.

    Returns the features of the index, and the others by the names of their sources; raises ValueError if these differ
    in kind from those of the index.
    """
    found = features_of(options.index, options.model, options)
    settings = {name: found.settings[name] for name in OF_INDEX if name in found.settings}
    options = replace(options, **settings, features=found.kind)
    others = {}
    for source in dict.fromkeys([options.queries, options.whiten]):  # in the same order in all processes
        if source is not None:
            others[source] = features_of(source, options.model or found.settings["model"], options)
            check_pair(found, others[source])
    return found, others


def places_of(names: Sequence[str | int], index_names: Sequence[str | int]) -> torch.Tensor:
    """
    Returns the place of each image in the index, (Q,), and -1 for an image that is not in it.

    Only files are looked up, since images in different tars or tables may have the same name.
    """
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
    Evaluates rankings of the index by a ground truth, or without one by labels.

    Args:
        features: the features of queries and index that are compared, whitened or not.

    Raises:
        NothingToEvaluate: if there is neither, or no query has an image to find.
        ValueError: if the ground truth lacks a query, or names images that are not there.
    """
    if truth is not None:
        by_place = truth.find(asked.names, found.names)
        unknown = set(range(len(asked.names))) - set(by_place.places)
        if asked is not found and unknown:
            raise ValueError(f"{truth.source} has no query {asked.names[min(unknown)]}")
        return evaluate_ground_truth(*features, by_place, own if asked is found else None)
    for part in (asked, found):
        if part.labels is None:
            raise NothingToEvaluate(f"{no_labels(part.source)}, or name a --ground-truth")
    classes = {label for label in found.labels if label is not None}
    if len(classes) == 1:
        raise NothingToEvaluate(one_class(found.source, classes.pop()))
    numbers: dict[Label | None, int] = {None: UNLABELLED}
    labels = [
        torch.tensor([numbers.setdefault(label, len(numbers)) for label in part.labels]) for part in (asked, found)
    ]
    return {"": evaluate_labels(features[0], labels[0], features[1], labels[1], own)}


def results_of(retrieval: Retrieval, dataset: str, whitened_to: int | None, by_labels: bool) -> list[dict]:
    """Returns the evaluations as [`record_evaluation_results`] takes them."""
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


def write_neighbours(retrieval: Retrieval, file: Path):
    """
    Writes a row for each neighbour to a .csv or .parquet file.

    The columns are `query`, `rank` (from 1), `neighbour`, `similarity`, and where there are labels `query_label` and
    `neighbour_label`.
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
    with marked_file(file, NEIGHBOUR_COLUMNS) as partial:
        table = require("pyarrow").table(columns).replace_schema_metadata({"columns": NEIGHBOUR_COLUMNS})
        if file.suffix == ".csv":
            require("pyarrow.csv").write_csv(table, partial)
        else:
            require("pyarrow.parquet").write_table(table, partial)


def rows_of_sheet(retrieval: Retrieval) -> list[tuple[Tile, list[Tile]]]:
    """Returns queries that are evenly spread over all, with their neighbours, in colors where both have labels."""
    index, queries = retrieval.index, retrieval.queries
    rows = []
    for row in shown_queries(retrieval):
        label = None if queries.labels is None else queries.labels[row]
        tiles = []
        for similarity, place in zip(retrieval.similarities[row].tolist(), retrieval.places[row].tolist()):
            other = None if index.labels is None else index.labels[place]
            if label is None or other is None:
                tiles.append(Tile(index.names[place], f"{similarity:.3f}"))
            else:
                color = RIGHT if label == other else WRONG
                tiles.append(Tile(index.names[place], f"{similarity:.3f} {other}", color))
        caption = Path(str(queries.names[row])).name if label is None else str(label)
        rows.append((Tile(queries.names[row], caption), tiles))
    return rows


def shown_queries(retrieval: Retrieval) -> list[int]:
    """Returns the queries that the contact sheet shows, evenly spread over all."""
    count = len(retrieval.queries.names)
    return torch.linspace(0, count - 1, min(SHEET_ROWS, count)).long().tolist()


def about_sheet(retrieval: Retrieval) -> list[str]:
    """Returns what the contact sheet says about its rows: which of the queries they are, and how good these are."""
    index, queries = retrieval.index, retrieval.queries
    shown, count, top = shown_queries(retrieval), len(queries.names), retrieval.places.shape[1]
    which = f"All {count} queries" if len(shown) == count else f"{len(shown)} of {count} queries, evenly spaced"
    lines = [f"{which}, each at the left of its {min(top, MAX_COLUMNS)} nearest neighbours with their cosines."]
    of_sheet, of_all = (share_of_label(retrieval, rows) for rows in (shown, range(count)))
    if of_sheet is not None:
        all_queries = "" if len(shown) == count else f"; of those of all queries, {of_all:.0%} have"
        lines.append(f"Of the neighbours, {of_sheet:.0%} have the label of the query, in green{all_queries}.")
    settings = index.settings
    lines.append(f"Features: {index.kind} of {settings['model']}.")
    return [*lines, *([RANDOM_WEIGHTS] if settings.get("random_weights") else [])]


def share_of_label(retrieval: Retrieval, rows: Sequence[int]) -> float | None:
    """Computes which share of the neighbours of some queries has the label of the query; None where none has one."""
    index, queries = retrieval.index, retrieval.queries
    if index.labels is None or queries.labels is None:
        return None
    pairs = [(queries.labels[row], index.labels[place]) for row in rows for place in retrieval.places[row].tolist()]
    pairs = [pair for pair in pairs if None not in pair]
    return sum(label == other for label, other in pairs) / len(pairs) if pairs else None
