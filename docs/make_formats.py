"""
Makes formats.md, the table of what is converted and verified, from the formats and the tests' own lists: `python
docs/make_formats.py`.
"""

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from conversion_scripts.recognition import FORMATS


ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / folder) for folder in ("helpers", "conversion_scripts")]
dinos = import_module("test_conversion")
of_originals, of_timm, of_transformers = (
    import_module(f"test_{library}_later_dinos") for library in ("original", "timm", "transformers")
)
FAMILIES = {
    "vit": "DINO, ViT",
    "resnet": "DINO, ResNet",
    "xcit": "DINO, XCiT",
    "dinov2": "DINOv2",
    "dinov3": "DINOv3, ViT",
    "convnext": "DINOv3, ConvNeXt",
}
LIBRARIES = ("original", "transformers", "timm", "torchvision", "lesson")
MODELS = {  # with random weights of the library, at several sizes
    "transformers": [*dinos.OF_TRANSFORMERS, *of_transformers.MODELS],
    "timm": [*dinos.OF_TIMM, *of_timm.MODELS],
    "torchvision": dinos.OF_TORCHVISION,
}
RECORDED = {"original": {"vit", *of_originals.RECORDED}, "lesson": {"vit"}}
HEAD = """# Formats and families

What [`dino convert`](conversion.md) reads and writes, and what a test checks of it. All are read, written, and the
same bit for bit when they are read again; **read again** means this alone. Elsewhere features are compared, too, at
several sizes, in float32, within 1e-5 of the largest: with **numbers recorded** from the original, or with so many
**models** of the library with random weights. `python docs/make_formats.py` makes this table from the formats and the
lists of the tests.

"""


def page() -> str:
    """Returns the text of the page."""
    rows = [["", *LIBRARIES], ["---"] * (len(LIBRARIES) + 1)]
    rows += [[title, *(cell(family, library) for library in LIBRARIES)] for family, title in FAMILIES.items()]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def cell(family: str, library: str) -> str:
    """Returns what is verified of a family in the formats of a library."""
    if not any(family in one.families for one in FORMATS[library]):
        return "–"
    if family in RECORDED.get(library, ()):
        return "numbers recorded"
    number = sum(family_of_name(name) == family for name in MODELS.get(library, ()))
    return f"{number} model{'s' * (number > 1)}" if number else "read again"


def family_of_name(name: str, families: Iterable[str] = ("dinov2", "dinov3", "convnext", "xcit", "resnet")) -> str:
    """Returns the family of a model, from its name in the list of a test."""
    name = name.replace("registers", "dinov2")
    return next((family for family in families if family in name), "vit")


if __name__ == "__main__":
    (ROOT / "docs" / "formats.md").write_text(page(), encoding="utf-8")
