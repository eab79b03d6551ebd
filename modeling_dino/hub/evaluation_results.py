# SPDX-License-Identifier: Apache-2.0
"""
Reads and writes `evaluation_results.json` beside the weights of a model, for the model card.

The file is a list of mappings with `task`, `dataset`, `metric` and `value`. Other keys are fields of `EvalResult`
(`dataset_split`, `metric_name`, …), or arguments of the metric. The same evaluation run again replaces its result.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from huggingface_hub import EvalResult

from ..runtime.whole_files import changed_in_turn, check_replaceable, whole_file


EVALUATION_RESULTS_NAME = "evaluation_results.json"
DATASET_TYPE = re.compile(r"([\w-]+/)?[\w.-]+", re.ASCII)  # the ids of data sets that the hub accepts


def read_evaluation_results(folder: str | os.PathLike) -> list[EvalResult]:
    """Reads the results in a model's folder, if there are any; raises ValueError if the file is something else."""
    return [_eval_result(**result) for result in _read(Path(folder) / EVALUATION_RESULTS_NAME)]


def add_evaluation_results(folder: str | os.PathLike, results: Sequence[dict]):
    """
    Puts results into a model's folder, in the place of earlier ones that differ from them in `value` alone.

    Raises:
        ValueError: if a result or the file that is there is not valid; nothing is changed then.
        OSError: if the file cannot be written.
    """
    path = Path(folder) / EVALUATION_RESULTS_NAME
    _check(results, "results")
    evaluations = list(map(_without_value, results))
    with changed_in_turn(path):
        kept = [result for result in _read(path) if _without_value(result) not in evaluations]
        write_evaluation_results(path, [*kept, *results])


def check_results_file(file: str | os.PathLike | None):
    """Raises ValueError if there is a file of something else where results will be written; None is nowhere."""
    if file is not None:
        check_replaceable(Path(file), _has_results)


def _has_results(path: Path) -> bool:
    try:
        _read(path)
    except ValueError:
        return False
    return path.name != EVALUATION_RESULTS_NAME  # which has the results of others, too


def write_evaluation_results(file: str | os.PathLike, results: Sequence[dict]):
    """Writes results to a file of any name; raises OSError if it cannot be written."""
    with whole_file(Path(file)) as partial:
        partial.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def record_evaluation_results(
    folder: str | os.PathLike | None,
    file: str | os.PathLike | None,
    results: Sequence[dict],
    details: Sequence[dict] = (),
) -> list[str]:
    """
    Records results in the folder of a model and in a file, where they are given.

    Args:
        details: further results for the file, which would make the model card too long.

    Returns:
        a line that says where they are; none if they are nowhere.

    Raises:
        ValueError: if the file has something else, and as [`add_evaluation_results`] does.
        OSError: see [`add_evaluation_results`].
    """
    places = []
    if folder is not None:
        add_evaluation_results(folder, results)
        places.append(str(Path(folder) / EVALUATION_RESULTS_NAME))
    if file is not None:
        check_results_file(file)
        write_evaluation_results(file, [*results, *details])
        places.append(str(file))
    return [f"recorded in {' and '.join(places)}"] if places else []


def _without_value(result: dict) -> dict:
    """Returns what identifies an evaluation: its result without the value."""
    return {key: value for key, value in result.items() if key != "value"}


def _read(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        results = error
    _check(results, path)
    return results


def _check(results: object, name: str | os.PathLike):
    """Raises ValueError if they are not a list of results."""
    try:
        if not isinstance(results, (list, tuple)):
            raise ValueError(f"it is a {type(results).__name__}")
        for result in results:
            _eval_result(**result)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is not a list of results, each with a task, dataset, metric and value ({error})"
        ) from error


def _eval_result(task: str, dataset: str, metric: str, value: float | str, **more) -> EvalResult:
    for name, text in {"task": task, "dataset": dataset, "metric": metric}.items():
        if not isinstance(text, str):
            raise ValueError(f"{name}={text!r} is not a text")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"value={value!r} is neither a number nor a text")
    known = {field.name for field in fields(EvalResult)}
    arguments = {key: more.pop(key) for key in list(more) if key not in known}
    if arguments:
        more["metric_args"] = arguments
    return EvalResult(
        task_type=task,
        dataset_type=dataset if DATASET_TYPE.fullmatch(dataset) else re.sub(r"[^a-zA-Z0-9_.-]+", "-", dataset),
        metric_type=metric,
        metric_value=value,
        **{"dataset_name": dataset, **more},
    )
