"""Signals that come where Python ignores exceptions."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[2] / "modeling_dino"

# the package's own import takes seconds
ALONE = f"""
import sys, types
package = sys.modules["modeling_dino"] = types.ModuleType("modeling_dino")
package.__path__ = [{str(PACKAGE)!r}]
"""

# as logging does it until Python 3.12: a lock is held while the process forks, and released by a function
SIGNALLED = """
import os, signal, sys, time
from threading import Lock, Thread

COMING, LOCK = [], Lock()

def release():
    if COMING:
        os.kill(os.getpid(), COMING[0])
    LOCK.release()

os.register_at_fork(before=LOCK.acquire, after_in_parent=release)

from modeling_dino.runtime.signals import ended_by_signals

def fork():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), COMING[0])
        time.sleep(0)

class HalfMade:
    def __init__(self):
        os.kill(os.getpid(), COMING[0])
        time.sleep(0)
        self.attribute = 1

    def __del__(self):
        self.attribute + 1

class Described:
    def __set_name__(self, owner, name):  # whose exceptions Python wraps until 3.12
        HalfMade()

def describe():
    type("Owner", (), {"described": Described()})

def pipe():  # as command lines end where nobody reads what they print
    try:
        HalfMade()
    except BaseException:
        sys.exit(1)

number, place = int(sys.argv[1]), sys.argv[2]
COMING.append(number)
try:
    with ended_by_signals():
        {"fork": fork, "destructor": Destroyed, "constructor": HalfMade, "class": describe, "pipe": pipe}[place]()
        time.sleep(60)
except KeyboardInterrupt:
    code = 130
except SystemExit as stop:
    code = stop.code
else:
    code = "not ended"
print(code, "free" if LOCK.acquire(blocking=False) else "locked")
"""


@pytest.mark.parametrize("place", ["fork", "destructor", "constructor", "class", "pipe"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_never_lost(number, place):
    """
    It ends the command, without a word, also where it comes while the process forks, in a destructor, or where its
    exception is turned into another; no lock stays held. Of an object that is half made the destructor fails, which
    nobody need know.
    """
    command = [sys.executable, "-c", ALONE + SIGNALLED, str(int(number)), place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == (f"{128 + number} free\n", "")


# a thread of a forked process prints a traceback when it cannot hand on what it has read
READING = """
import os, signal, sys, time
from modeling_dino.runtime.signals import ended_by_signals

def say(text):
    print(text, file=sys.stderr, flush=True)

said, stopped = os.pipe(), os.pipe()
try:
    with ended_by_signals():
        if not os.fork():
            say("before")
            os.write(said[1], b"1")
            os.read(stopped[0], 1)
            say("after")
            os._exit(0)
        os.read(said[0], 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except SystemExit as stop:
    os.write(stopped[1], b"1")
    os.wait()
    say(stop.code)
"""


def test_what_is_forked_says_nothing_when_a_signal_has_come():
    done = subprocess.run([sys.executable, "-c", ALONE + READING], capture_output=True, text=True, timeout=50)
    assert done.stderr == "before\n143\n"
