# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Looks at the files of a saved model, in a folder or on the hub, without loading the weights."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


# the arguments of `from_pretrained` that say where the files are
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def is_foreign(config_dict: dict) -> bool:
    """Whether a `config.json` is of another library's model that we can convert: transformers' ViT, or timm's."""
    return config_dict.get("model_type") == "vit" or "architecture" in config_dict


def checkpoint_keys(
    name_or_path: str | os.PathLike | None, state_dict: dict | None = None, variant: str | None = None, **kwargs
) -> list[str]:
    """
    The names of the tensors in a saved model.

    Args:
        name_or_path: a folder, or a model id on the hub; unused where the weights come as a `state_dict`.
        variant: as in `from_pretrained`, `model.<variant>.safetensors`.
        kwargs: those of `from_pretrained`; what does not say where the files are is ignored.

    Raises:
        OSError: if the weights are missing or damaged.
    """
    if state_dict is not None:
        return list(state_dict)
    location = {name: kwargs[name] for name in LOCATION_ARGUMENTS if name in kwargs}
    for file_name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if variant is not None:
            stem, _, suffix = file_name.partition(".safetensors")
            file_name = f"{stem}.safetensors.index.{variant}.json" if suffix else f"{stem}.{variant}.safetensors"
        path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **location)
        if path is not None:
            return _keys_of_index(Path(path)) if path.endswith(".json") else _keys_of_safetensors(Path(path))
    raise OSError(f"no {SAFE_WEIGHTS_NAME} in {str(name_or_path)!r}: is it a model saved with save_pretrained?")


def _keys_of_safetensors(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise OSError(f"{path} is truncated or damaged ({error}): copy or download it again") from error


def _keys_of_index(path: Path) -> list[str]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError) as error:
        raise OSError(f"{path} is damaged ({error}): copy or download it again") from error


__all__ = ["LOCATION_ARGUMENTS", "checkpoint_keys", "is_foreign"]
