# SPDX-License-Identifier: Apache-2.0
"""One module a foreign checkpoint format, both directions.

Each has its key table first, then a class that says how the format differs; `checkpoint_format.py` has what they have
in common, and says how a format is added. A library has several formats, one for each kind of backbone that it keeps
in its own way. `checkpoint.py` reads and writes, `wrappers.py` takes off what is around a state dict, `sizes.py`
infers a configuration from tensors, `recognition.py` finds a checkpoint's format, `convert.py` is `dino convert`.
"""
