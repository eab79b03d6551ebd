# SPDX-License-Identifier: Apache-2.0
"""The folder of a run that goes on where it stopped."""


def first_difference(old: dict, new: dict) -> str:
    """The first setting that differs, as `name: old -> new`."""
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
                return f"{name}.{first_difference(old[name], new[name])}"
            return f"{name}: {old.get(name)} -> {new.get(name)}"
    return ""


__all__ = ["first_difference"]
