import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from modeling_dino.runtime.printing import printable


ROOT = Path(__file__).parents[2]


@pytest.fixture
def failing(dino, monkeypatch):
    """Runs `dino info`, which does what a function does; returns what the command line does of it."""

    def run(function, *arguments):
        monkeypatch.setattr("modeling_dino.hub.info.show_info", lambda **options: function())
        return dino(*arguments, "info")

    return run


def throw(error: BaseException):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        TypeError("no\nsuch"),
        AttributeError("y"),
        RuntimeError(""),
        RecursionError(),
        OverflowError("int"),
    ],
)
def test_what_is_unforeseen_is_one_line_that_names_the_traceback(failing, error):
    code, _, err = failing(lambda: throw(error))
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith(f"dino: unforeseen {type(error).__name__}: ")
    assert "`dino --traceback info`" in err
    with pytest.raises(type(error)):
        failing(lambda: throw(error), "--traceback")


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), FileNotFoundError(2, "no", "x"), MemoryError(), torch.OutOfMemoryError("x")]
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(failing, error):
    code, _, err = failing(lambda: throw(error))
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("dino: ")


def test_a_cpu_without_enough_memory_is_said(failing):
    code, _, err = failing(lambda: torch.empty(2**60))
    assert code == 2
    assert err.startswith("dino: memory does not suffice, take smaller batches or images: ")


def test_messages_stand_on_lines_of_their_own(failing):
    """Whatever progress bar is shown, and left open by an error."""

    def work():
        bar = tqdm(total=3, file=sys.stderr, mininterval=0)
        bar.update()
        logging.getLogger("modeling_dino.data").warning("a \x1b[31mwarning")
        bar.update()
        raise ValueError("an error")

    _, _, err = failing(work)
    lines = [line.rpartition("\r")[2] for line in err.split("\n")]
    assert "a \\x1b[31mwarning" in lines
    assert "dino: an error" in lines
    assert "\x1b[31m" not in err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café, 猫\n\t", "café, 猫\n\t"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("a\u2028b\x85", "a\\u2028b\\x85"),
        ("\ud800", "\\ud800"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(failing, text, shown):
    assert printable(text) == shown
    assert failing(lambda: text)[1] == shown + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 0.5, 1, 2])
@pytest.mark.parametrize("start", [["-c", "import dino_command; dino_command.main()"], ["-m", "modeling_dino"]])
def test_ctrl_c_is_quiet_from_the_start(tmp_path, start, seconds):
    (tmp_path / "sitecustomize.py").write_text("print('started', flush=True)")  # Python runs it when it starts
    process = subprocess.Popen(
        [sys.executable, *start, "demo", "--output", "demo"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_command_that_is_ended_removes_its_temporary_files(failing, tmp_path):
    from modeling_dino.runtime.whole_files import whole_file

    def work():
        with whole_file(tmp_path / "file") as partial:
            partial.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    code, _, _ = failing(work)
    assert code == 143
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_error_in_place_of_a_signal_says_nothing(failing, number, expected):
    """As where a library turns what it does not know into an error of its own."""

    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        except BaseException as error:
            raise RuntimeError("of a library") from error

    code, out, err = failing(work)
    assert (code, out, err) == (expected, "", "")


class EndedReader(Dataset):
    """Ends the process that reads it by a signal."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), self.number)
        time.sleep(10)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, 2), (signal.SIGTERM, 143)])
def test_a_reader_that_is_ended_from_outside(failing, number, expected):
    """By the system, for want of memory; or by a SIGTERM to all processes, as a scheduler sends it."""
    code, _, err = failing(lambda: list(DataLoader(EndedReader(number), num_workers=1)))
    assert code == expected
    assert err.startswith("dino: a process that reads images was killed") if expected == 2 else not err
    assert err.count("\n") == (expected == 2)
