# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, written under temporary names that nobody else uses."""

import errno
import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError


PARTIAL = ".partial"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without hard links answer
WRITER = re.compile(r"\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial$")  # the machine and process that write a partial
MAX_NAME = 50  # characters of a name that its temporary name has, which must not take more than 255 bytes
LONGEST_TURN = 60  # seconds
# in the messages of PyTorch and safetensors, which raise other errors than OSError
FAILED_WRITE = ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter", "unexpected pos")
LOCK = ".lock"  # stays in a folder; removing it would let two processes lock two files of that name
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Gives a place beside a file to write to; it takes the file's place at the end, when it is on the disk.

    Of several that write the same file at a time the last one stays, whole.

    Raises:
        OSError: if it cannot be written; what was there before still is.
    """
    with _partial_beside(path) as partial:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def whole_output(path: Path) -> Iterator[Path]:
    """
    Gives a place beside a new file or folder to write to; it takes the path at the end, and is gone if anything fails.

    Raises:
        ValueError: if the path is taken, as by `check_is_free`, or another process takes it meanwhile.
        OSError: if it cannot be written.
    """
    check_is_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial_beside(path) as partial:
        yield partial
        try:
            _take(partial, path)
        except OSError:
            check_is_free(path)
            raise


def _take(partial: Path, path: Path):
    """Gives what was written its name, unless the name is taken; of several processes only one can."""
    if partial.is_dir():
        partial.rename(path)  # takes the place of an empty folder, of no other
    else:
        if path.is_dir():
            path.rmdir()
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            check_is_free(path)
            partial.rename(path)


def check_is_free(path: Path):
    """Raises ValueError if there is a file, or a folder that is not empty."""
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists already: choose another place, or remove it")


def check_replaceable(path: Path, is_ours: Callable[[Path], bool]):
    """
    Raises ValueError if something is at a path that a command would replace without having written it.

    Args:
        is_ours: whether the command has written a file, told from what is in it.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: choose another name for the file")
    if path.exists() and not is_ours(path):
        raise ValueError(f"{path} was not written by this command, and is kept: choose another name, or remove it")


@contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """
    Makes a folder and lets one process at a time write to it; a killed process does not hold it any longer.

    Raises:
        ValueError: if another process writes to it.
        OSError: if the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refusal = f"another process writes to {folder}: wait until it ends, or choose another folder"
    with _locked(folder / LOCK, 0, refusal):
        yield


@contextmanager
def changed_in_turn(file: Path) -> Iterator[None]:
    """
    Lets one process at a time read a file and write it anew, while others wait for their turn.

    Raises:
        ValueError: if it is another's turn for longer than such a change takes.
        OSError: if nothing can be written beside the file.
    """
    refusal = f"another process changes {file}, and does not end: try it again later"
    with _locked(file.with_name(f".{file.name}{LOCK}"), LONGEST_TURN, refusal):
        yield


@contextmanager
def _locked(file: Path, timeout: float, refusal: str) -> Iterator[None]:
    """Holds a lock; raises ValueError, with the refusal, if another process holds it for so many seconds."""
    lock = FileLock(file, timeout=timeout)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(refusal) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _partial_beside(path: Path) -> Iterator[Path]:
    remove_abandoned(path.parent)
    partial = path.with_name(f".{path.name[:MAX_NAME]}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
    except (OSError, SafetensorError, RuntimeError) as error:
        if not is_failed_write(error):
            raise
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        failure = OSError(f"cannot write {path}: {reason}; what was there is kept")
        failure.errno = number  # not an argument, which would stand before the message
        raise failure from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


@lru_cache
def remove_abandoned(folder: Path):
    """Removes what processes of this machine were writing to a folder when they were killed."""
    with suppress(OSError):  # where nothing can be written, nothing can be removed
        for path in folder.iterdir():
            writer = WRITER.search(path.name)
            if is_partial(path) and writer and writer[1] == _HOST and not _is_running(int(writer[2])):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":  # elsewhere there is no asking without ending it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def is_failed_write(error: Exception) -> bool:
    """Returns whether something could not be written; of several libraries only Python raises OSError then."""
    return isinstance(error, OSError) or any(sign in str(error) for sign in FAILED_WRITE)


def is_partial(path: Path) -> bool:
    """Returns whether a path is what a process was still writing when it was killed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)
