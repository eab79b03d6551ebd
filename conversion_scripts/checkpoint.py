# SPDX-License-Identifier: Apache-2.0
"""Reads and writes checkpoints. They are not to be trusted: nothing in them is run. What is written appears whole."""

import argparse
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


# What the original pickles beside tensors: the arguments of the run, and numbers of numpy (under the names of numpy 1
# and 2).
_scalar = np.float64(0).__reduce__()[0]
ALLOWED_GLOBALS = [
    argparse.Namespace,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")},
]


@dataclass
class Checkpoint:
    """
    What was read.

    Args:
        source: path or hub id.
        contents: the file's mapping: a state dict, or one that holds state dicts.
        config: `config.json`, of a folder.
        notes: what a conversion leaves out, or finds contradictory, a line each.
    """

    source: str
    contents: dict
    config: dict | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Export:
    """
    What is to be written: a folder if there is a `config`, else a file.

    Args:
        contents: tensors of a folder, or what a file holds.
        notes: what the format cannot hold, a line each.
    """

    contents: dict
    config: dict | None = None
    notes: list[str] = field(default_factory=list)


def is_state_dict(contents: object) -> bool:
    """Whether it maps names to tensors, and has any."""
    return (
        isinstance(contents, Mapping)
        and len(contents) > 0
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in contents.items())
    )


def read_checkpoint(source: str, **location) -> Checkpoint:
    """
    Reads a folder, a file (PyTorch's or safetensors), or a model on the hub.

    Args:
        location: `revision`, `token`, `cache_dir`, … for the hub.

    Raises:
        ValueError: if it is no checkpoint, is damaged, or holds objects that are not allowed; in one line.
        OSError: if there is no such thing.
    """
    path = Path(source)
    if path.is_file():
        reader = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        return Checkpoint(str(source), reader(path))
    if not path.is_dir() and (str(source).count("/") != 1 or str(source).startswith((".", "/", "~"))):
        raise OSError(f"{source} is neither a file nor a folder, nor an id on the hub")
    config = _find(source, CONFIG_NAME, location)
    if config is None:
        raise OSError(f"no {CONFIG_NAME} in {source}: pass the file with the weights itself")
    return Checkpoint(str(source), _read_folder(source, location), _read_json(config))


def _find(source: str, name: str, location: dict) -> Path | None:
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **location)
    return None if found is None else Path(found)


def _read_folder(source: str, location: dict) -> dict:
    if (file := _find(source, SAFE_WEIGHTS_NAME, location)) is not None:
        return _read_safetensors(file)
    if (index := _find(source, SAFE_WEIGHTS_INDEX_NAME, location)) is not None:
        names = sorted(set(_read_json(index)["weight_map"].values()))
        shards = [_find(source, name, location) for name in names]
        if None in shards:
            raise OSError(f"{source} lacks {names[shards.index(None)]}, which its index names")
        return {name: tensor for shard in shards for name, tensor in _read_safetensors(shard).items()}
    if (file := _find(source, "pytorch_model.bin", location)) is not None:
        return _read_pickle(file)
    raise OSError(f"no {SAFE_WEIGHTS_NAME} in {source}: is a saved model there?")


def _read_json(path: Path) -> dict:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} does not hold a mapping")
    return contents


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error})") from error


def _read_pickle(path: Path) -> dict:
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            # files as PyTorch has written them since 1.6 are mapped into memory, not copied
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise ValueError(f"{path} is not a checkpoint of PyTorch, or damaged") from error
        raise ValueError(
            f"{path} is refused, since loading it would call {found[1]}: only tensors, argparse.Namespace and numpy's "
            "numbers are allowed"
        ) from error
    except Exception as error:  # the readers of zip files, pickles and storages raise nearly anything on damaged files
        raise ValueError(f"{path} is not a checkpoint of PyTorch, or damaged ({type(error).__name__})") from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds a {type(contents).__name__}, not a state dict")
    return dict(contents)


def translate(names: Iterable[str], table: list[tuple[str, str]]) -> dict[str, str]:
    """
    Each name with its translation, by the first row of a table whose left side fits; others stay as they are.

    In a table `{i}` stands for a number, `{p}` for the rest.
    """
    patterns = []
    for left, right in table:
        pattern = re.escape(left).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{p\}", r"(?P<p>.+)")
        patterns.append((re.compile(pattern), right))
    translated = {}
    for name in names:
        fitting = ((right, match) for pattern, right in patterns if (match := pattern.fullmatch(name)))
        right, match = next(fitting, (name, None))
        translated[name] = right if match is None else right.format(**match.groupdict())
    return translated


def rename(state_dict: dict[str, torch.Tensor], table: list[tuple[str, str]], inverse: bool = False) -> dict:
    """The tensors under the names on the right of a table (with `inverse`, on the left)."""
    rows = [(right, left) for left, right in table] if inverse else table
    names = translate(state_dict, rows)
    return {names[name]: tensor for name, tensor in state_dict.items()}


def refuse_existing(output: Path):
    """
    Raises:
        ValueError: if something is there already.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise ValueError(f"{output} exists already: choose another place, or remove it")


@contextmanager
def appearing_whole(output: Path) -> Iterator[Path]:
    """A place beside the output to write to; it takes the output's place at the end, and is gone if anything fails."""
    refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    remove(partial)
    try:
        yield partial
        if output.is_dir():  # an empty one
            output.rmdir()
        partial.rename(output)
    finally:
        remove(partial)


def remove(path: Path):
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_export(export: Export, output: Path):
    """Writes a folder or a file."""
    with appearing_whole(output) as partial:
        if export.config is None:
            torch.save(export.contents, partial)
            return
        partial.mkdir()
        (partial / CONFIG_NAME).write_text(json.dumps(export.config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in export.contents.items()}
        save_file(tensors, partial / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
