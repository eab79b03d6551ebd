"""Signals that come where Python ignores exceptions."""

import signal
import subprocess
import sys

import pytest


# the callback is called while logging's lock is held, which another thread needs afterwards
SIGNALLED = """
import os, signal, sys, time

COMING = []
os.register_at_fork(after_in_parent=lambda: [os.kill(os.getpid(), number) for number in COMING])

import logging
from threading import Thread
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

number, place = int(sys.argv[1]), sys.argv[2]
COMING.append(number)
try:
    with ended_by_signals():
        fork() if place == "fork" else Destroyed()
        time.sleep(60)
except KeyboardInterrupt:
    code = 130
except SystemExit as stop:
    code = stop.code
else:
    code = "not ended"
thread = Thread(target=logging.getLogger("other").setLevel, args=[10], daemon=True)
thread.start()
thread.join(10)
print(code, "locked" if thread.is_alive() else "free")
"""


@pytest.mark.parametrize("place", ["fork", "destructor"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_never_lost(number, place):
    """It ends the command also where it comes while the process forks, or in a destructor; no lock stays held."""
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr) == (f"{128 + number} free\n", "")
