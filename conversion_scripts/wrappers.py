# SPDX-License-Identifier: Apache-2.0
"""Takes off what training code wraps around a state dict: entries of a file, and prefixes of names."""

import re
from collections.abc import Mapping

from conversion_scripts.checkpoint import StateDict, first_names, is_state_dict
from modeling_dino.checkpoint_files import NETWORKS


# entries of a file that hold a state dict
ENTRIES = ("state_dict", "model", "module", "network", "net", "encoder")
# what distributed training, compilation, and modules that hold the model put before names
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "encoder.")
# entries that formats know, and whose tensors may have prefixes
KNOWN_ENTRIES = (*NETWORKS, "model_state_dict")
# names that every backbone has one of, under the name of any library; what stands before them is a prefix
ANCHOR = re.compile(
    r"(?:.*\.)?(?:patch_embed\.proj(?:ection)?\.(?:0\.0\.)?weight|cls_token|conv1\.weight|stem\.0\.weight|"
    r"downsample_layers\.0\.0\.weight)"
)


def unwrap(contents: Mapping) -> tuple[dict, list[str]]:
    """
    Returns the contents of a file without what is wrapped around its state dicts, and a note on each layer.

    A state dict with the tensors of a student and a teacher is returned as a mapping of both.
    """
    contents, notes = dict(contents), []
    while (layer := _outer_layer(contents)) is not None:
        contents, note, left_out = layer
        notes.append(f"{note}, and left out {first_names(left_out)}" if left_out else note)
    for name in KNOWN_ENTRIES:
        if isinstance(contents.get(name), Mapping):
            contents[name], inner = unwrap(contents[name])
            notes += [note for note in inner if note not in notes]
    return contents, notes


def _outer_layer(contents: dict) -> tuple[dict, str, list[str]] | None:
    """Returns what is in the outermost layer, what the layer is, and what lies beside it; None if there is none."""
    if is_state_dict(contents):
        return _outer_prefix(contents)
    if any(isinstance(contents.get(name), Mapping) for name in KNOWN_ENTRIES):
        return None
    for name in ENTRIES:
        if isinstance(contents.get(name), Mapping):
            return dict(contents[name]), f"took the entry {name!r} of the file", [n for n in contents if n != name]
    return None


def _outer_prefix(tensors: StateDict) -> tuple[dict, str, list[str]] | None:
    anchors = [name for name in tensors if ANCHOR.fullmatch(name)]
    networks = [name for name in NETWORKS if any(anchor.startswith(f"{name}.") for anchor in anchors)]
    if networks:
        contents = {name: _with_prefix(tensors, f"{name}.") for name in networks}
        left_out = [name for name in tensors if name.split(".")[0] not in networks]
        return contents, f"took the tensors of {' and '.join(networks)}", left_out
    for prefix in PREFIXES:
        if anchors and all(anchor.startswith(prefix) for anchor in anchors):
            left_out = [name for name in tensors if not name.startswith(prefix)]
            return _with_prefix(tensors, prefix), f"took {prefix!r} off the names", left_out
    return None


def _with_prefix(tensors: StateDict, prefix: str) -> StateDict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
