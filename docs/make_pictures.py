"""
Makes the pictures of the documentation from a finished demo, as the commands beside each make them.

    dino demo --output demo
    python docs/make_pictures.py demo

It needs Chromium with its driver, and the packages of the tests. Pictures of more
than 400 kB get a palette, and are made smaller until they fit.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from browser import chromium, wait_for_mark

from modeling_dino import draw_attention, draw_pca, retrieve, write_report


FOLDER = Path(__file__).parent / "pictures"
MAX_BYTES, MAX_WIDTH, COLORS = 400_000, 1600, 256
NUM_PAINTED = 6  # photographs, of which there are pictures of components
SCREENS = {  # name: width, height, dark, what is clicked
    "report-light": (1440, 900, False, "choose(0)"),
    "report-dark": (1440, 900, True, "openTab('duplicates')"),
    "report-phone": (390, 844, False, "choose(0)"),
}


def main(demo: Path):
    """Makes all pictures."""
    model, photographs = str(demo / "model"), demo / "photographs"
    index, queries = str(demo / "features" / "views"), str(demo / "features" / "distorted")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        # dino attention --model demo/model --image demo/photographs/astronaut.png --output out --size 224 --mass 0.6
        astronaut = str(photographs / "astronaut.png")
        draw_attention(model=model, images=astronaut, output=f"{out}/attention", size=224, mass=0.6)
        save(out / "attention" / "astronaut-attention.png", "attention")
        # dino pca --model demo/model --images first.txt --output out
        first = out / "first.txt"  # the first photographs of the demo, in their order
        first.write_text("\n".join(str(path.resolve()) for path in sorted(photographs.iterdir())[:NUM_PAINTED]))
        draw_pca(model=model, images=str(first), output=f"{out}/components")
        save(out / "components" / "overview.png", "components")
        # dino retrieve --index demo/features/views --queries demo/features/distorted --sheet neighbours.png
        retrieve(index=index, queries=queries, sheet=f"{out}/neighbours.png")
        save(out / "neighbours.png", "neighbours")
        # dino report demo/features/views --output report.html
        page = write_report(folder=index, output=f"{out}/report.html").output
        for screen in SCREENS:
            photograph_page(page, out / f"{screen}.png", *SCREENS[screen])
            save(out / f"{screen}.png", screen)
    save(demo / "model" / "curves.png", "curves")  # dino pretrain writes it, and dino demo calls that


def photograph_page(page: Path, file: Path, width: int, height: int, dark: bool, script: str):
    """Saves what a browser shows of a report after a script, when all thumbnails are there."""
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), width, height, dark) as browser:
        browser.get(page.resolve().as_uri())
        wait_for_mark(browser, "pictures")
        browser.execute_script(script)
        # two frames on, the script's changes are painted
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        browser.save_screenshot(str(file))


def save(file: Path, name: str):
    """Saves a picture in `docs/pictures`; one that is too large with a palette, and smaller if need be."""
    FOLDER.mkdir(exist_ok=True)
    target, picture = FOLDER / f"{name}.png", Image.open(file).convert("RGB")
    picture.thumbnail((MAX_WIDTH, picture.height), Image.Resampling.LANCZOS)
    picture.save(target, optimize=True)
    width = picture.width
    while target.stat().st_size > MAX_BYTES:
        smaller = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        palette = smaller.quantize(COLORS, Image.Quantize.MAXCOVERAGE, kmeans=10)
        smaller.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
        width = int(width * 0.9)
    with Image.open(target) as saved:
        print(f"{target}: {saved.width} x {saved.height}, {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/make_pictures.py DEMO_FOLDER")
    main(Path(sys.argv[1]))
