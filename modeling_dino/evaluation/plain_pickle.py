# SPDX-License-Identifier: Apache-2.0
"""Reads pickles of plain things: containers, texts, numbers, and numpy's arrays of these. Nothing in them is run.

Arrays are not rebuilt by numpy, which trusts what it is given, but here, from their bytes, and become lists.
"""

import os
import pickle
from typing import Any

from ..runtime.extras import require


KINDS_OF_NUMBERS_AND_TEXTS = "biufSU"


def load_plain_pickle(file: str | os.PathLike) -> Any:
    """
    Raises:
        ValueError: if it is no pickle, damaged, or asks for anything else.
        OSError: if it cannot be read.
    """
    with open(file, "rb") as stream:
        try:
            return PlainUnpickler(stream, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file} is not a pickle of plain containers, or damaged ({reason})") from error


class PlainUnpickler(pickle.Unpickler):
    """Knows nothing but what arrays are pickled with, and has something of its own for each."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return PickledArray
            if name == "scalar":
                return lambda dtype, content: PickledArray.read((1,), dtype, content)[0]
        if (module, name) == ("numpy", "dtype"):
            return PickledDtype
        if (module, name) == ("numpy", "ndarray"):
            return None  # what to reconstruct
        if (module, name) == ("_codecs", "encode"):  # bytes, in the older protocols
            return lambda text, encoding: text.encode("latin1")
        if (module, name) == ("__builtin__", "bytes"):  # none
            return lambda: b""
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


class PickledDtype:
    """The kind and size of numbers or texts, such as i8; what follows says in which order their bytes are."""

    def __init__(self, code: str, *args: object):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple):
        self.order = state[1]

    def resolve(self) -> Any:
        """numpy's."""
        dtype = require("numpy").dtype(str(self.code))
        if dtype.kind not in KINDS_OF_NUMBERS_AND_TEXTS:
            raise pickle.UnpicklingError(f"an array of {dtype}")
        return dtype.newbyteorder(self.order)


class PickledArray(list):
    """An array as lists; it is empty until its state is read."""

    def __init__(self, *args: object):
        super().__init__()

    def __setstate__(self, state: tuple):
        _, shape, dtype, in_columns, content = state
        self[:] = self.read(shape, dtype, content, "F" if in_columns else "C")

    @staticmethod
    def read(shape: tuple[int, ...], dtype: PickledDtype, content: bytes | str, order: str = "C") -> list:
        """Its bytes, which Python 2 pickled as a text, as lists."""
        content = content.encode("latin1") if isinstance(content, str) else content
        return require("numpy").frombuffer(content, dtype.resolve()).reshape(shape, order=order).tolist()


__all__ = ["load_plain_pickle"]
