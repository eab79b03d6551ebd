"""The photographs inside scikit-image, in the sizes and modes that users' files have."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from modeling_dino.demo.images import PHOTOGRAPHS


FOLDER = Path(skimage.data.__file__).parent
ROTATED = 6  # EXIF orientation: the camera was turned by 90 degrees


def open_photograph(name: str) -> Image.Image:
    with Image.open(FOLDER / name) as image:
        return image.convert("RGB")


def save_variants(folder: Path) -> list[Path]:
    """Twenty files: photographs of odd sizes, and one in each mode and format that needs care."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []

    def save(image: Image.Image, name: str, **options):
        image.save(folder / name, **options)
        files.append(folder / name)

    sizes = [(301, 457), (640, 333), (225, 224), (224, 600), (97, 131), (256, 256), (1000, 259), (50, 400), (255, 511)]
    for name, size in zip(PHOTOGRAPHS, sizes):
        image = open_photograph(name).resize(size)
        save(image, f"{Path(name).stem}-{size[0]}x{size[1]}.png")
    coffee = open_photograph("coffee.png").resize((333, 251))
    save(coffee.convert("L"), "grey.png")
    rgba = coffee.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    save(rgba, "rgba.png")
    save(coffee.convert("P", palette=Image.Palette.ADAPTIVE), "palette.png")
    save(coffee.convert("P", palette=Image.Palette.ADAPTIVE), "palette-transparent.gif", transparency=3)
    save(coffee.convert("CMYK"), "cmyk.jpg", quality=95)
    save(coffee.convert("LA"), "grey-alpha.png")
    save(coffee.convert("1"), "bilevel.png")
    sixteen = np.asarray(coffee.convert("L")).astype(np.uint16) * 2  # half of it above 255
    save(Image.fromarray(sixteen), "sixteen-bit.png")
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    save(coffee, "rotated.jpg", exif=exif, quality=95)
    save(coffee, "progressive.jpg", progressive=True)
    save(coffee, "photograph.webp", quality=90)
    return files
