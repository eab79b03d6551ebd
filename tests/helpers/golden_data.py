"""Numbers recorded from other implementations (see golden/README.md), and how close to them is close enough."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open


GOLDEN_DIR = Path(os.environ.get("DINO_GOLDEN_DIR", Path(__file__).parent.parent / "golden"))
TOLERANCE = 1e-5  # of the largest magnitude of the compared tensor


def read_golden(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The metadata and the tensors of `NAME.safetensors`."""
    with safe_open(GOLDEN_DIR / f"{name}.safetensors", framework="pt") as file:
        metadata = {key: json.loads(value) for key, value in sorted(file.metadata().items())}
        return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)


def with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE):
    """Equal shapes, and differences within the tolerance relative to the largest magnitude."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert torch.isfinite(actual).all()
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert difference <= tolerance, f"differs by {difference:.2e} relative, allowed is {tolerance:.0e}"
