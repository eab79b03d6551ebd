# SPDX-License-Identifier: Apache-2.0
"""One shard of a folder of features: a Parquet file, which is written whole and checked when it is read."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from ..runtime.extras import require
from ..runtime.json_files import check_types
from ..runtime.whole_files import whole_file


SHARD_NAME = re.compile(r"features-(\d{6,})-(\d{6,})\.parquet")
TAIL_BYTES = 8  # of a Parquet file: the length of its footer, and a signature
# columns beside the features that every source may give; which of them name the images
COLUMNS = {"path": "string", "shard": "int64", "index": "int64", "label": "string or int64"}
NAMES = ("path", "index")


class Remarks(TypedDict):
    """Holds what a shard says about itself."""

    skipped: dict[str, str]
    notes: dict[str, str]
    ends_part: bool


@dataclass(frozen=True)
class Shard:
    """
    A shard that is there.

    Args:
        columns: names of its columns, and their types in Arrow.
        remarks: see [`Remarks`].
        fingerprint: hash of its footer, which differs from shard to shard.
    """

    file: Path
    rows: int
    columns: dict[str, str]
    remarks: dict[str, Any]
    fingerprint: str

    @property
    def place(self) -> tuple[int, int]:
        """The numbers of its part and chunk."""
        return shard_place(self.file)


def shard_place(file: Path) -> tuple[int, int]:
    """Returns the numbers of a shard's part and chunk, which its name has."""
    part, chunk = SHARD_NAME.fullmatch(file.name).groups()
    return int(part), int(chunk)


def damaged(file: Path, reason: object) -> ValueError:
    """Returns the error about a shard that is not as it was written."""
    reason = " ".join(str(reason).split())
    return ValueError(f"{file} is damaged ({reason}): remove it, and run the same `dino extract` again, which goes on")


def write_shard(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    features: Mapping[str, np.ndarray],
    remarks: Remarks,
):
    """
    Writes a shard; raises OSError if it cannot be written.

    Args:
        rows: the columns beside the features.
        columns: the types of these in Arrow.
        features: arrays of (rows, ...), float32, by their columns.
    """
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    arrays = {name: pa.array([row.get(name) for row in rows], pa.type_for_alias(columns[name])) for name in columns}
    for name, values in features.items():
        flat = pa.array(values.reshape(-1))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))
    table = pa.table(arrays).replace_schema_metadata({"dino": json.dumps(remarks)})
    with whole_file(file) as partial:
        pq.write_table(table, partial, compression="none", use_dictionary=["label"], write_page_checksum=True)


def read_shard(file: Path, shapes: Mapping[str, Sequence[int]]) -> Shard:
    """
    Reads what a shard says about itself, and checks its columns.

    Args:
        shapes: columns of features, and the shape of an image's.

    Raises:
        ValueError: if the file is damaged, or has other columns.
        OSError: if it may not be read.
    """
    pq = require("pyarrow.parquet")
    try:
        footer = read_footer(file)
        with pq.ParquetFile(file) as opened:
            rows, schema = opened.metadata.num_rows, opened.schema_arrow
        remarks = json.loads((schema.metadata or {})[b"dino"])
        check_types(remarks, Remarks, file)
        check_columns(schema, shapes)
    except PermissionError:
        raise
    except Exception as error:  # a Parquet reader raises nearly anything on damaged files
        raise damaged(file, error) from error
    columns = {field.name: str(field.type) for field in schema}
    return Shard(file, rows, columns, remarks, hashlib.sha256(footer).hexdigest()[:16])


def read_footer(file: Path) -> bytes:
    """Reads the footer of a Parquet file, which says where the columns are and what they range over."""
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - TAIL_BYTES))
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(max(0, size - TAIL_BYTES - length))
        return opened.read()


def check_columns(schema: Any, shapes: Mapping[str, Sequence[int]]):
    """Raises ValueError if a column is missing, or of another type than features, names and labels have."""
    pa = require("pyarrow")
    types = {field.name: field.type for field in schema}
    if len(types) < len(schema):
        raise ValueError("two columns have the same name")
    for name, shape in shapes.items():
        wanted = pa.list_(pa.float32(), math.prod(shape))
        if name not in types or not pa.types.is_fixed_size_list(types[name]):
            raise ValueError(f"it has no features {name!r}")
        if (types[name].value_type, types[name].list_size) != (wanted.value_type, wanted.list_size):
            raise ValueError(f"its features {name!r} are {types[name]}, not {wanted}")
    if not any(name in types for name in NAMES):
        raise ValueError(f"it has no column {' or '.join(NAMES)}")
    for name in COLUMNS.keys() & types.keys():
        if str(types[name]).removeprefix("large_") not in COLUMNS[name].split(" or "):
            raise ValueError(f"its column {name!r} is {types[name]}, not {COLUMNS[name]}")


def load_shard(shard: Shard, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Loads the columns of a shard, features as (rows, *shape) without a copy. Raises ValueError if it is damaged."""
    pq = require("pyarrow.parquet")
    try:
        table = pq.read_table(shard.file, page_checksum_verification=True)
        if len(table) != shard.rows:
            raise ValueError(f"it has {len(table)} rows, not {shard.rows}")
        for name in {*NAMES, *shapes}.intersection(table.column_names):
            if table[name].null_count:
                raise ValueError(f"values of {name!r} are missing")
        return {
            name: _values(table[name], shapes[name]) if name in shapes else table[name].to_numpy()
            for name in table.column_names
        }
    except MemoryError:
        raise
    except Exception as error:  # a Parquet reader raises nearly anything on damaged files
        raise damaged(shard.file, error) from error


def _values(column: Any, shape: Sequence[int]) -> np.ndarray:
    """Returns a column of lists as (rows, *shape), without a copy."""
    pa = require("pyarrow")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    values = (chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)) if chunks else None
    if values is None:
        return np.empty((0, *shape), "float32")
    return values.flatten().to_numpy().reshape(len(values), *shape)
