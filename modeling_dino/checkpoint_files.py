# SPDX-License-Identifier: Apache-2.0
"""Reads the files of a saved model, in a folder or on the hub, without loading all weights."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


CENTER_NAME = "center.safetensors"  # `dino convert` puts it beside the teacher of a training run
NETWORKS = ("teacher", "student")  # of a model in pretraining
# arguments of `from_pretrained` that say where the files are
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def is_foreign(config_dict: dict) -> bool:
    """Returns whether a `config.json` belongs to a model of another library that we convert: transformers' ViT, or
    timm's."""
    return config_dict.get("model_type") == "vit" or "architecture" in config_dict


def location_of(kwargs: dict) -> dict:
    """Returns those arguments of `from_pretrained` that say where the files are."""
    return {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}


def read_mapping(path: Path) -> dict:
    """
    Reads a JSON file that holds a mapping.

    Raises:
        ValueError: if it holds something else, or is damaged.
        OSError: if it cannot be read.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not JSON, or damaged ({error}): copy or download it again") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}, not a mapping")
    return contents


def network_prefix(keys: list[str], which: str | None) -> str:
    """
    Returns the prefix that the names of a network's tensors have in a checkpoint; none if it holds a single network.

    Raises:
        ValueError: if the network that is asked for is not there.
    """
    if which not in (None, *NETWORKS):
        raise ValueError(f"unknown network {which!r}: allowed are {', '.join(NETWORKS)}")
    there = [name for name in NETWORKS if any(key.startswith(f"{name}.") for key in keys)]
    if which is None and not there:
        return ""
    which = which or "teacher"
    if which not in there:
        raise ValueError(f"there is no {which} in the checkpoint, only a {there[0] if there else 'single network'}")
    return f"{which}."


def checkpoint_keys(name_or_path: str | os.PathLike | None, state_dict: dict | None = None, **kwargs) -> list[str]:
    """
    Returns the names of the tensors in a saved model.

    Args:
        name_or_path: a folder, or a model id on the hub; unused if the weights are in `state_dict`.
        kwargs: those of `from_pretrained`, of which [`location_of`] takes its part.

    Raises:
        OSError: if the weights are missing or damaged.
    """
    return list(state_dict if state_dict is not None else _file_of_each_key(name_or_path, **kwargs))


def read_tensors(
    name_or_path: str | os.PathLike | None, prefix: str, state_dict: dict | None = None, **kwargs
) -> dict[str, torch.Tensor]:
    """Reads the tensors whose names start with a prefix, which it removes; the rest is as for [`checkpoint_keys`]."""
    if state_dict is not None:
        return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    tensors = {}
    files = _file_of_each_key(name_or_path, **kwargs)
    for name in sorted({file for key, file in files.items() if key.startswith(prefix)}):
        with _open_safetensors(_find(name_or_path, name, kwargs)) as file:
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                if key.startswith(prefix):
                    tensors[key.removeprefix(prefix)] = file.get_tensor(key)
    return tensors


def _file_of_each_key(name_or_path: str | os.PathLike | None, variant: str | None = None, **kwargs) -> dict[str, str]:
    """Returns the names of the tensors in a saved model, each with the name of its file."""
    for file_name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if variant is not None:  # `model.<variant>.safetensors`
            stem, _, suffix = file_name.partition(".safetensors")
            file_name = f"{stem}.safetensors.index.{variant}.json" if suffix else f"{stem}.{variant}.safetensors"
        path = _find(name_or_path, file_name, kwargs)
        if path is not None and path.suffix == ".json":
            return _weight_map_of_index(path)
        if path is not None:
            with _open_safetensors(path) as file:
                return dict.fromkeys(file.keys(), file_name)
    raise OSError(f"no {SAFE_WEIGHTS_NAME} in {str(name_or_path)!r}: is it a model saved with save_pretrained?")


def _find(name_or_path: str | os.PathLike | None, file_name: str, kwargs: dict) -> Path | None:
    path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **location_of(kwargs))
    return None if path is None else Path(path)


def read_center(name_or_path: str | os.PathLike, **kwargs) -> torch.Tensor | None:
    """Reads the center (1, projection_dim) that lies beside a converted teacher, if there is one."""
    path = _find(name_or_path, CENTER_NAME, kwargs)
    if path is None:
        return None
    with _open_safetensors(path) as file:
        return file.get_tensor("center")


def _open_safetensors(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise OSError(f"{path} is truncated or damaged ({error}): copy or download it again") from error


def _weight_map_of_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(f"{path} is damaged ({error}): copy or download it again") from error
