"""transformers.js, which runs in Node: `python tests/helpers/transformers_js.py` installs it once into `.cache/`.

Its installation scripts, which download more than tests need, do not run.
"""

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path


PACKAGE = "@huggingface/transformers"
FOLDER = Path(__file__).parents[2] / ".cache" / "transformers-js"


def install():
    """Installs the package where npm is there; it appears whole or not at all."""
    if FOLDER.is_dir() or not (shutil.which("npm") and shutil.which("node")):
        return
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
        arguments = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", PACKAGE]
        with suppress(subprocess.SubprocessError):  # the test is left out then
            subprocess.run(arguments, cwd=folder, timeout=300, check=True)
            Path(folder).rename(FOLDER)
            Path(folder).mkdir()  # for the end of the block to remove


def run(script: str, folder: Path) -> str:
    """Runs a module that imports the package; returns what it prints."""
    file = FOLDER / f"{folder.name}.mjs"
    file.write_text(script)
    try:
        return subprocess.run(["node", file], cwd=folder, check=True, capture_output=True, text=True).stdout
    finally:
        file.unlink()


if __name__ == "__main__":
    install()
