import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from modeling_dino.runtime.run_folder import RunFolder


class Run(RunFolder):
    file_name, format, contents, command = "run.json", "a run 1", "a run", "dino run"

    def has_results(self) -> bool:
        return (self.path / "result").exists()

    def clear(self):
        (self.path / "result").unlink(missing_ok=True)


def hold(folder: Path):
    """Writes to a folder until the process is killed."""
    with Run(folder, {}).opened(overwrite=False):
        (folder / "result").touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that writes to `tmp_path / "run"`."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run",))
    process.start()
    while not (tmp_path / "run" / "result").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("settings", [{}, {"seed": 1}])
def test_of_two_runs_at_once_the_second_is_refused(tmp_path, holder, settings):
    """Whether it is the same run or another; once the first was killed the same run goes on."""
    run, before = Run(tmp_path / "run", settings), (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match=r"another process writes to .*run"), run.opened(overwrite=True):
        pass
    assert (tmp_path / "run" / "run.json").read_text() == before
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with Run(tmp_path / "run", {}).opened(overwrite=False):
        assert (tmp_path / "run" / "result").exists()


def fail(folder: Path, file: str | None, error: type[BaseException]):
    """A run that writes a file, and fails."""
    with Run(folder, {}).opened(overwrite=False):
        if file is not None:
            (folder / file).touch()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_run_that_fails_before_it_has_results_leaves_no_new_folder(tmp_path, error):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(error):
            fail(tmp_path / name, ".result.partial", error)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == [".lock"]
    with Run(tmp_path / "empty", {}).opened(overwrite=False):
        pass


@pytest.mark.parametrize(("processes", "file"), [("1", "result"), ("2", None)])
def test_results_and_what_other_processes_write_to_stay(tmp_path, monkeypatch, processes, file):
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(KeyboardInterrupt):
        fail(tmp_path / "run", file, KeyboardInterrupt)
    assert Run.read(tmp_path / "run") == {"format": "a run 1", "settings": {}, "complete": False}


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with (
        pytest.raises(ValueError, match="holds something other than a run of `dino run`"),
        Run(tmp_path, {}).opened(overwrite=True),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.txt"]


HEALTHY = {"format": "a run 1", "settings": {}, "complete": True}


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (json.dumps(HEALTHY)[:-3], r"run.json is damaged: it is not JSON"),
        ("[" * 10_000, r"run.json is damaged: it is not JSON"),
        ("[]", r"run.json is damaged: it is not a mapping"),
        (json.dumps({**HEALTHY, "settings": None}), r"run.json is damaged: .*settings"),
        (json.dumps({**HEALTHY, "complete": "yes"}), r"run.json is damaged: .*complete"),
        (json.dumps({"format": "a run 1", "settings": {}}), r"run.json is damaged: it lacks complete"),
        (json.dumps({**HEALTHY, "format": "a run 2"}), "holds something other than a run"),
        (json.dumps({"name": "an app"}), "holds something other than a run"),
    ],
)
def test_a_damaged_file_is_told_from_something_else(tmp_path, contents, says):
    (tmp_path / "run.json").write_text(contents)
    with pytest.raises(ValueError, match=says):
        Run.read(tmp_path)
    with pytest.raises(ValueError, match=says):
        Run(tmp_path, {}).check(overwrite=True)
