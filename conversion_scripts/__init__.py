# SPDX-License-Identifier: Apache-2.0
"""One module a foreign checkpoint format, both directions.

Each has its key table `KEYS` first, then `matches(checkpoint)`, `to_dino(checkpoint, …) -> (config, state_dict)` and
`from_dino(config, state_dict) -> Export`. `checkpoint.py` reads and writes, `sizes.py` infers a configuration from
tensors, `convert.py` puts them together.
"""
