# SPDX-License-Identifier: Apache-2.0
"""Ends a command by Ctrl-C and SIGTERM through exceptions, so that its temporary files are removed."""

import logging  # noqa: F401 (its lock is released before `FORKING` is, as what is registered first)
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer, current_thread, main_thread
from typing import TextIO


ENDED = 128 + signal.SIGTERM  # exit code
SECONDS = 0.05  # after which a signal comes again; what ignores exceptions takes less

STOPPED = mmap.mmap(-1, 1)  # the signal that has come, or 0; shared with the processes that are forked


class UntilStopped:
    """Passes on what a forked process says, but for what its threads say of a parent that a signal has ended."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes a text, or drops it. Returns its length."""
        return len(text) if STOPPED[0] else self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def say_nothing_when_stopped():
    """Lets this process, which was forked, be quiet when a signal has come."""
    if sys.stderr is not None:
        sys.stderr = UntilStopped(sys.stderr)


FORKING = Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=say_nothing_when_stopped)
    # methods in C, within which no signal is handled
    os.register_at_fork(before=FORKING.acquire, after_in_parent=FORKING.release, after_in_child=FORKING.release)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """
    Lets SIGINT raise KeyboardInterrupt, and SIGTERM SystemExit, wherever they come.

    Python ignores exceptions in destructors and while it forks: there the command would go on as if nothing had been
    said, and a lock might never be released. So signals wait while the process forks, and come again where their
    exception was ignored. Where something turned the exception into another one, as Python does when it comes while a
    class is made, the command still ends with the exit code of the signal.
    """
    if current_thread() is not main_thread():  # which alone can
        yield
        return
    STOPPED[0] = 0
    handlers = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:
        if STOPPED[0]:
            raise SystemExit(128 + STOPPED[0]) from error
        raise
    except SystemExit as stop:
        if STOPPED[0] and stop.code:
            stop.code = 128 + STOPPED[0]
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None if it was not Python that set it


def end(number: int, frame: object):
    """Raises the exception of a signal, at once or after a fork."""
    if FORKING.locked():
        repeat(number)
        return
    sys.unraisablehook, STOPPED[0] = end_quietly, number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(ENDED)


def end_quietly(ignored: "sys.UnraisableHookArgs"):
    """
    Repeats a signal whose exception was ignored. What destructors say of objects that were being made when the signal
    came tells nobody anything.
    """
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        repeat(signal.SIGINT)
    elif issubclass(ignored.exc_type, SystemExit):
        repeat(signal.SIGTERM)


def repeat(number: int):
    """Lets a signal come again."""
    again = Timer(SECONDS, os.kill, [os.getpid(), number])
    again.daemon = True
    again.start()
