import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from modeling_dino.runtime.whole_files import check_replaceable, one_writer, whole_output


def hold(folder: Path):
    """Holds the lock of a folder until the process is killed."""
    with one_writer(folder):
        (folder / "held").touch()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that writes to `tmp_path / "run"`."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run",))
    process.start()
    while not (tmp_path / "run" / "held").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_one_process_at_a_time_writes_to_a_folder(tmp_path, holder):
    with (
        pytest.raises(ValueError, match=r"another process writes to .*run: wait until it ends, or choose"),
        one_writer(tmp_path / "run"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with one_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
@pytest.mark.parametrize("links", [True, False])
def test_of_two_writers_of_one_output_one_is_told(tmp_path, monkeypatch, make, links):
    """Neither spoils what the other writes, nor replaces it; also where the file system has no links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    output = tmp_path / "output"
    with pytest.raises(ValueError, match="exists already"), whole_output(output) as late:  # noqa: PT012
        make(late)
        with whole_output(output) as early:
            make(early)
            if early.is_dir():
                (early / "weights").touch()
    assert os.listdir(tmp_path) == ["output"]
    assert output.is_file() or os.listdir(output) == ["weights"]


def test_only_what_a_command_wrote_is_replaced(tmp_path):
    file = tmp_path / "file"
    check_replaceable(file, lambda path: False)
    file.touch()
    check_replaceable(file, lambda path: True)
    with pytest.raises(ValueError, match="was not written by this command, and is kept"):
        check_replaceable(file, lambda path: False)
    with pytest.raises(ValueError, match="is a folder"):
        check_replaceable(tmp_path, lambda path: True)


def test_outputs_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with whole_output(tmp_path / "file") as partial:
            partial.touch()
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
