# SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints, which are not to be trusted, so nothing in them is run; renames their tensors; writes them."""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from modeling_dino.checkpoint_files import (
    follow_umask,
    open_safetensors,
    read_mapping,
    weight_map_of_index,
)
from modeling_dino.image_processing_dino import save_image_transform
from modeling_dino.runtime.printing import printable
from modeling_dino.runtime.whole_files import whole_output


# What training code pickles beside tensors: the arguments of the run, numbers of numpy (under the names of numpy 1
# and 2), and paths (under the names of Python's releases), which become plain ones that touch no file.
PATH_MODULES = ("pathlib", "pathlib._local")
_scalar = np.float64(0).__reduce__()[0]
ALLOWED_GLOBALS = [
    argparse.Namespace,
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(name)) for name in ("float64", "float32", "float16", "int64", "int32", "bool")},
    *((PurePosixPath, f"{module}.PosixPath") for module in PATH_MODULES),
    *((PurePosixPath, f"{module}.PurePosixPath") for module in PATH_MODULES),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in PATH_MODULES),
    *((PureWindowsPath, f"{module}.PureWindowsPath") for module in PATH_MODULES),
]
# the files of a run whose weights are cut up among its processes, by their names or by those of their tensors
SHARDED = re.compile(r".*\.rank_\d+\.pth|.*\.distcp")
FLATTENED = "flat_param"
StateDict = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """A checkpoint that was read or is to be written: a folder if it has a `config`, else a file."""

    contents: dict  # the state dict of a folder; or the mapping in a file, which may hold state dicts
    config: dict | None = None  # the contents of a folder's `config.json`
    notes: list[str] = field(default_factory=list)  # what a conversion leaves out or finds contradictory, a line each
    image_transform: dict | None = None  # the contents of a folder's `preprocessor_config.json`, to be written
    source: str = ""  # the path or hub id that it was read from


class ShardedCheckpointError(ValueError):
    """A file holds one process's part of a run."""

    def __init__(self, source: str | Path):
        super().__init__(
            f"{source} is a run's state in parts, one for each process, of which a part cannot be converted: let the "
            "original put them together (its evaluation, `do_test`), and pass the teacher_checkpoint.pth that it "
            "writes under eval/"
        )


def is_state_dict(contents: object) -> bool:
    """Returns whether an object maps names to tensors, and has any."""
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
    path, source = Path(source), str(source)
    folders = ("*.distcp", "*/*.distcp") if path.is_dir() else ()
    if SHARDED.fullmatch(path.name) or any(any(path.glob(pattern)) for pattern in folders):
        raise ShardedCheckpointError(source)
    if path.is_file():
        reader = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
        return Checkpoint(reader(path), source=source)
    if not path.is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise OSError(f"{source} is neither a file nor a folder, nor an id on the hub")
    config = _find(source, CONFIG_NAME, location)
    if config is None:
        raise OSError(f"no {CONFIG_NAME} in {source}: pass the file with the weights itself")
    return Checkpoint(_read_folder(source, location), read_mapping(config), source=source)


def _find(source: str, name: str, location: dict) -> Path | None:
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **location)
    return None if found is None else Path(found)


def _read_folder(source: str, location: dict) -> dict:
    if (file := _find(source, SAFE_WEIGHTS_NAME, location)) is not None:
        return _read_safetensors(file)
    if (index := _find(source, SAFE_WEIGHTS_INDEX_NAME, location)) is not None:
        names = sorted(set(weight_map_of_index(index).values()))
        shards = [_find(source, name, location) for name in names]
        if None in shards:
            raise OSError(f"{source} lacks {names[shards.index(None)]}, which its index names")
        return {name: tensor for shard in shards for name, tensor in _read_safetensors(shard).items()}
    if (file := _find(source, "pytorch_model.bin", location)) is not None:
        return _read_pickle(file)
    raise OSError(f"no {SAFE_WEIGHTS_NAME} in {source}: is a saved model there?")


def _read_safetensors(path: Path) -> StateDict:
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)


def _read_pickle(path: Path) -> dict:
    with open(path, "rb"):  # says so if it may not be read
        pass
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            # files as PyTorch has written them since 1.6 are mapped into memory, not copied
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise ValueError(f"{path} is not a checkpoint of PyTorch, or damaged") from error
        if found[1].startswith("torch.distributed."):
            raise ShardedCheckpointError(path) from error
        raise ValueError(
            f"{path} is refused, since loading it would call {found[1]}: only tensors, argparse.Namespace, paths and "
            "numpy's numbers are allowed"
        ) from error
    except Exception as error:  # the readers of zip files, pickles and storages raise nearly anything on damaged files
        raise ValueError(f"{path} is not a checkpoint of PyTorch, or damaged ({type(error).__name__})") from error
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path} holds a {type(contents).__name__}, not a state dict")
    entries = [contents, *(value for value in contents.values() if isinstance(value, Mapping))]
    if any(FLATTENED in str(name) for entry in entries for name in entry):
        raise ShardedCheckpointError(path)
    return dict(contents)


def write_checkpoint(checkpoint: Checkpoint, output: Path):
    """Writes a folder or a file, which must not be there yet."""
    with whole_output(output) as partial:
        if checkpoint.config is None:
            with open(partial, "wb") as file:  # given a path, torch.save would write the temporary name into the file
                torch.save(checkpoint.contents, file)
            return
        partial.mkdir()
        (partial / CONFIG_NAME).write_text(json.dumps(checkpoint.config, indent=2) + "\n", encoding="utf-8")
        if checkpoint.image_transform is not None:
            save_image_transform(checkpoint.image_transform, partial)
        save_tensors(checkpoint.contents, partial / SAFE_WEIGHTS_NAME)


def save_tensors(tensors: StateDict, path: Path):
    """Writes a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    follow_umask(path)


def rename(tensors: StateDict, table: list[tuple[str, str]], inverse: bool = False) -> StateDict:
    """
    Renames tensors by the first row of a table whose left side fits the name; others keep theirs.

    Args:
        table: pairs of names, in which `{i}` and `{j}` stand for numbers and `{p}` for the rest.
        inverse: from right to left.
    """
    patterns = []
    for left, right in [row[::-1] for row in table] if inverse else table:
        pattern = re.escape(left).replace(r"\{p\}", r"(?P<p>.+)")
        pattern = re.sub(r"\\{([ij])\\}", r"(?P<\1>\\d+)", pattern)
        patterns.append((re.compile(pattern), right))
    renamed = {}
    for name, tensor in tensors.items():
        fitting = (right.format(**match.groupdict()) for left, right in patterns if (match := left.fullmatch(name)))
        renamed[next(fitting, name)] = tensor
    return renamed


def split_tensors(tensors: StateDict, whole: str, parts: tuple[str, ...]) -> StateDict:
    """Cuts each tensor with a part of a name into equal pieces along its first dimension, with names of their own."""
    pieces = {}
    for name, tensor in tensors.items():
        if whole in name:
            pieces |= {name.replace(whole, part): piece for part, piece in zip(parts, tensor.chunk(len(parts)))}
        else:
            pieces[name] = tensor
    return pieces


def join_tensors(tensors: StateDict, whole: str, parts: tuple[str, ...]) -> StateDict:
    """Puts the pieces that [`split_tensors`] makes together again, where all of them are there."""
    joined = dict(tensors)
    for name in [name for name in tensors if parts[0] in name]:
        pieces = [name.replace(parts[0], part) for part in parts]
        if all(piece in joined for piece in pieces):  # else the check of the whole names what is missing
            joined[name.replace(parts[0], whole)] = torch.cat([joined.pop(piece) for piece in pieces])
    return joined


def first_names(names: Iterable[str], number: int = 3) -> str:
    """Lists the first few names, and how many more there are, in one line that a terminal shows as it is."""
    names = [printable(str(name).replace("\n", "\\n")) for name in names]
    return ", ".join(names[:number]) + (f" and {len(names) - number} more" if len(names) > number else "")
