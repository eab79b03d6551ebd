"""Python in a process of its own, in which some packages cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path


BLOCK = """
import sys
class Filter:
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {blocked!r}:
            specs = (finder.find_spec(name, path, target) for finder in self.finders)
            return next((spec for spec in specs if spec is not None), None)
    def find_distributions(self, *context):
        for finder in self.finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(*context)
sys.meta_path[:] = [Filter(sys.meta_path[:])]
"""


def run_python(
    code: str, folder: Path, blocked: tuple[str, ...] = (), check: bool = True, environment: dict | None = None
) -> subprocess.CompletedProcess:
    """Runs code in a folder, with caches of its own there and the packages named by `blocked` not to be had."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf_home"), **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=set(blocked)) + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stderr
    return done
