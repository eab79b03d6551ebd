import inspect
import pydoc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from modeling_dino.runtime.options import StrPath, option, takes_options


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """What is painted."""

    summary: ClassVar[str] = "Paints an image."

    size: int = option("Shorter side in pixels.", 480)
    image: StrPath = option("Image to paint.")
    bands: Sequence[int] | None = option("Channels to show.", None)
    frames: list[StrPath] | None = option("Images of frames.", None)
    progress: bool = option("Show a progress bar.", True, python_only=True)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1")


@takes_options(PaintOptions, command="paint")
def paint(options: PaintOptions) -> PaintOptions:
    """
    Colors are those of the image.

    Returns:
        the options.
    """
    return options


def test_keywords_and_options_are_the_same():
    expected = PaintOptions(image="a.png", size=3)
    assert paint(image="a.png", size=3) == expected
    assert paint(expected) is expected


def test_paths_are_texts_and_several_values_are_tuples():
    found = paint(image=Path("a/b.png"), bands=[3, 1], frames=(Path("c"),))
    assert found == PaintOptions(image="a/b.png", bands=(3, 1), frames=["c"])
    assert paint(PaintOptions(image=Path("a/b.png"), bands=[3, 1])).image == "a/b.png"
    found = paint(image="a", bands=2, frames="c")
    assert (found.bands, found.frames) == ((2,), ["c"])


@pytest.mark.parametrize(
    ("arguments", "values", "message"),
    [
        ((), {"image": "a", "sise": 3}, r"paint\(\) has no option 'sise': did you mean 'size'\?"),
        ((), {"image": "a", "x": 3}, r"paint\(\) has no option 'x': there are image, size, bands, frames, progress"),
        ((), {}, r"paint\(\) needs image: Image to paint\."),
        (("a",), {}, r"paint\(\) takes its options by their names, such as image=…, not 'a'"),
        ((PaintOptions(image="a"),), {"size": 3}, r"paint\(\) takes a PaintOptions or keywords, not both"),
    ],
)
def test_wrong_calls_are_one_line(arguments, values, message):
    with pytest.raises(TypeError, match=message):
        paint(*arguments, **values)


def test_wrong_values_are_the_options_own_errors():
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        paint(image="a", size=0)


def test_signature_and_help_show_the_options():
    parameters = inspect.signature(paint).parameters
    assert list(parameters) == ["image", "size", "bands", "frames", "progress"]  # what is required comes first
    assert parameters["size"].default == 480
    assert inspect.signature(paint).return_annotation is PaintOptions
    assert paint.__doc__.splitlines() == [
        "Paints an image.",
        "",
        "Colors are those of the image.",
        "",
        "Args:",
        "    image: Image to paint.",
        "    size: Shorter side in pixels.",
        "    bands: Channels to show.",
        "    frames: Images of frames.",
        "    progress: Show a progress bar.",
        "",
        "Returns:",
        "    the options.",
    ]
    shown = pydoc.plain(pydoc.render_doc(paint))
    assert "size: int = 480" in shown
    assert "Shorter side in pixels." in shown
