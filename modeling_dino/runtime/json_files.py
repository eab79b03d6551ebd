# SPDX-License-Identifier: Apache-2.0
"""Reads JSON files that anybody may have written or damaged, and checks them against a schema."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError


def read_json(path: Path, schema: type) -> dict[str, Any]:
    """
    Reads a mapping.

    Args:
        schema: a `TypedDict` of its keys and the types of their values; other keys are kept as they are.

    Raises:
        ValueError: if it is not JSON, or not as the schema says; names the first wrong value.
        OSError: if there is no such file, or it may not be read.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    check_types(contents, schema, path)
    return contents


def check_types(contents: Any, schema: type, name: str | Path):
    """Raises ValueError, with the name of what was read, if it is no mapping of the types of a schema."""
    if not isinstance(contents, dict):
        raise ValueError(f"{name} is damaged: it is not a mapping")
    known = {key: contents[key] for key in schema.__annotations__ if key in contents}
    if missing := sorted(schema.__required_keys__ - known.keys()):
        raise ValueError(f"{name} is damaged: it lacks {missing[0]}")
    try:
        validate_typed_dict(schema, known)
    except StrictDataclassError as error:
        raise ValueError(f"{name} is damaged: {error.__cause__ or error}") from error
