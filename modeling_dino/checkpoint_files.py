# SPDX-License-Identifier: Apache-2.0
"""Reads the files of a saved model, in a folder or on the hub, without loading all weights."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file


CENTER_NAME = "center.safetensors"  # `dino convert` puts it beside the teacher of a training run
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors")
NETWORKS = ("teacher", "student")  # of a model in pretraining
FOREIGN_MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")  # transformers'
# values of the configuration that decide which tensors there are: parts of their names -> value
NAMED_BY = (
    (r"backbone\.(patch_embed\.proj\.0|patch_embed\.proj|conv1|downsample_layers)\.", "backbone"),
    (r"layer1\.0\.(conv\d)\.", "backbone"),
    (r"backbone\.blocks\.(\d+)\.", "num_hidden_layers"),
    (r"backbone\.(layer\d+\.\d+)\.", "depths"),
    (r"attn\.qkv\.(\w+)", "qkv_bias"),
    (r"backbone\.(pos_embed|rope_embed)", "rope_theta"),
    (r"blocks\.0\.(mlp\.fc1|mlp\.w1)", "use_swiglu_ffn"),
    (r"head\.(mlp|last_layer)\.", "head_type"),
    (r"head\.last_layer\.weight(_v|$)", "head_weight_norm"),
    (r"head\.mlp\.\d+\.(weight|running_mean)", "head_use_bn"),
    (r"head\.mlp\.(\d+)\.weight", "head_num_layers"),
)
# the same of parts that a model may lack
LACKED_BY = (
    (r"backbone\.(register_tokens)", "num_register_tokens"),
    (r"backbone\.(mask_token)", "use_mask_token"),
    (r"backbone\.blocks\.0\.(ls1)", "layerscale_value"),
    (r"backbone\.(cls_norm)", "untie_cls_and_patch_norms"),
    (r"backbone\.(local_cls_norm)", "untie_global_and_local_cls_norm"),
)
# values that decide their sizes, one for each dimension
SIZED_BY = (
    (r"patch_embed\.proj\.weight", ("hidden_size", "num_channels", "patch_size", "patch_size")),
    (r"backbone\.conv1\.weight", ("hidden_size", "num_channels", "resnet_stem", "resnet_stem")),
    (r"pos_embed", (None, "image_size", "hidden_size")),
    (r"mlp\.(fc1|w1)\.weight", ("mlp_ratio", "hidden_size")),
    (r"register_tokens", (None, "num_register_tokens", "hidden_size")),
    (r"head\.last_layer\.weight(_v)?$", ("projection_dim", "head_bottleneck_dim")),
    (r"head\.mlp\.(0\.)?weight", ("head_hidden_dim", "hidden_size")),
    (r"classifier\.weight", ("num_labels", "classifier_last_blocks")),
)
# arguments of `from_pretrained` that say where the files are
LOCATION_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def is_foreign(config_dict: dict) -> bool:
    """Returns whether a `config.json` belongs to a model of another library that we convert, transformers or timm."""
    return config_dict.get("model_type") in FOREIGN_MODEL_TYPES or "architecture" in config_dict


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


class DisagreementError(ValueError, RuntimeError):
    """Configuration and weights are not of one model; transformers raises RuntimeError for tensors of other sizes."""


def check_weights(config: PreTrainedConfig, shapes: dict, expected: dict, allowed: Sequence[str] = ()):
    """
    Compares weights with what the configuration makes of them.

    Args:
        shapes: of the tensors that there are, by their names.
        expected: the tensors or parameters that the model has, by their names.
        allowed: values of the configuration that may make it smaller or larger than the weights.

    Raises:
        DisagreementError: if they are not of one model; names the value of the configuration and the tensor.
    """
    if shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}:
        return
    if adapters := [name for name in shapes if ".lora_A." in name]:
        raise DisagreementError(
            f"the weights are of a run with adapters (LoRA), as {adapters[0]}: when it has ended, the run's folder "
            "has the model in which they are merged"
        )
    for pattern, value in (*NAMED_BY, *LACKED_BY):
        ours, theirs = (
            {m[1]: name for name in names if (m := re.search(pattern, name))} for names in (expected, shapes)
        )
        other = ours.keys() ^ theirs.keys()
        is_there = (ours and theirs) or ((pattern, value) in LACKED_BY and any("backbone." in name for name in shapes))
        if is_there and other and value not in allowed:
            part = min(other)
            have = f"lack {ours[part]}" if part in ours else f"have {theirs[part]!r}"
            raise DisagreementError(
                f"the configuration has {value}={getattr(config, value)!r}, but the weights {have}: one of the two is "
                "another model's"
            )
    wrong = [name for name, tensor in expected.items() if name in shapes and shapes[name] != tuple(tensor.shape)]
    values_of = {name: values for pattern, values in SIZED_BY for name in wrong if re.search(pattern, name)}
    for name in (*values_of, *wrong):
        must_be = tuple(expected[name].shape)
        pairs = zip(shapes[name], must_be, values_of.get(name, ()))
        values = [value for found, size, value in pairs if found != size and value]
        by = f", since the configuration has {values[0]}={getattr(config, values[0])!r}" if values else ""
        raise DisagreementError(f"{name} is {shapes[name]}, but must be {must_be}{by}")


def check_finite_weights(tensors: dict[str, torch.Tensor], source: str | os.PathLike):
    """Raises ValueError if weights are infinite or NaN; names the first such tensor."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = torch.aminmax(tensor)  # NaN if any number is
            if not (low > -float("inf") and high < float("inf")):
                overflow = ", or too large for float16" if tensor.dtype == torch.float16 else ""
                raise ValueError(f"{source}: {name} has weights that are infinite or not numbers{overflow}")


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
        OSError: if the weights are missing, damaged or not to be read.
    """
    return list(state_dict if state_dict is not None else _file_of_each_key(name_or_path, **kwargs))


def checkpoint_shapes(
    name_or_path: str | os.PathLike | None, state_dict: dict | None = None, **kwargs
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors in a saved model, without reading them; as for [`checkpoint_keys`]."""
    if state_dict is not None:
        return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    shapes = {}
    files = _file_of_each_key(name_or_path, **kwargs)
    for name in sorted(set(files.values())):
        with open_safetensors(_find_shard(name_or_path, name, kwargs)) as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return shapes


def read_tensors(
    name_or_path: str | os.PathLike | None, prefix: str, state_dict: dict | None = None, **kwargs
) -> dict[str, torch.Tensor]:
    """Reads the tensors whose names start with a prefix, which it removes; the rest is as for [`checkpoint_keys`]."""
    if state_dict is not None:
        return {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    tensors = {}
    files = _file_of_each_key(name_or_path, **kwargs)
    for name in sorted({file for key, file in files.items() if key.startswith(prefix)}):
        with open_safetensors(_find_shard(name_or_path, name, kwargs)) as file:
            for key in file.keys():  # noqa: SIM118 (it is no dict)
                if key.startswith(prefix):
                    tensors[key.removeprefix(prefix)] = file.get_tensor(key)
    return tensors


def _file_of_each_key(name_or_path: str | os.PathLike | None, variant: str | None = None, **kwargs) -> dict[str, str]:
    """Returns the names of the tensors in a saved model, each with the name of its file."""
    refuse_weights_file(name_or_path)
    for file_name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if variant is not None:  # `model.<variant>.safetensors`
            stem, _, suffix = file_name.partition(".safetensors")
            file_name = f"{stem}.safetensors.index.{variant}.json" if suffix else f"{stem}.{variant}.safetensors"
        path = _find(name_or_path, file_name, kwargs)
        if path is not None and path.suffix == ".json":
            return weight_map_of_index(path)
        if path is not None:
            with open_safetensors(path) as file:
                return dict.fromkeys(file.keys(), file_name)
    raise OSError(f"no {SAFE_WEIGHTS_NAME} in {str(name_or_path)!r}: is it a model saved with save_pretrained?")


def _find(name_or_path: str | os.PathLike | None, file_name: str, kwargs: dict) -> Path | None:
    path = cached_file(name_or_path, file_name, _raise_exceptions_for_missing_entries=False, **location_of(kwargs))
    return None if path is None else Path(path)


def _find_shard(name_or_path: str | os.PathLike, name: str, kwargs: dict) -> Path:
    path = _find(name_or_path, name, kwargs)
    if path is None:
        raise OSError(f"{name_or_path} lacks {name}, which its index names: copy or download it again")
    return path


def read_center(name_or_path: str | os.PathLike, **kwargs) -> torch.Tensor | None:
    """Reads the center (1, projection_dim) that lies beside a converted teacher, if there is one."""
    path = _find(name_or_path, CENTER_NAME, kwargs)
    if path is None:
        return None
    with open_safetensors(path) as file:
        return file.get_tensor("center")


def open_safetensors(path: Path) -> safe_open:
    """Opens weights; raises OSError if they are damaged, or may not be read."""
    with open(path, "rb"):  # says so if it may not be read, where safetensors says that there is no such file
        pass
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise OSError(f"{path} is truncated or damaged ({error}): copy or download it again") from error


def follow_umask(path: Path):
    """Gives a file the permissions of any new file; safetensors makes files that only their owner can read."""
    umask = os.umask(0o077)  # there is no other way to ask for it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def refuse_weights_file(name_or_path: str | os.PathLike | None):
    """Raises ValueError for a file of weights in the place of a folder or an id on the hub."""
    if name_or_path is None or Path(name_or_path).is_dir():
        return
    if Path(name_or_path).suffix in WEIGHTS_SUFFIXES:
        raise ValueError(
            f"{name_or_path} is a file, and a model is a folder or an id on the hub: run `dino convert {name_or_path} "
            "FOLDER`, and load the folder"
        )


def weight_map_of_index(path: Path) -> dict[str, str]:
    weight_map = read_mapping(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise ValueError(f"{path} is damaged: its weight_map is not one of names to files: copy or download it again")
    if wrong := [name for name in weight_map.values() if Path(name).name != name]:
        raise ValueError(f"{path} names {wrong[0]!r}, which is not a file beside it")
    return weight_map
