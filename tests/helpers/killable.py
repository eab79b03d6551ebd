"""Runs of the command line, in one or more processes, that are killed at a moment."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


# forks, so that what can be killed begins with the imports done; the processes find each other as `accelerate launch`
# has them do
KILLED = """
import os, sys
import accelerate, datasets, pyarrow.parquet
{prelude}
from modeling_dino.cli.app import main

for line in sys.stdin:
    *arguments, num_processes, port = line.rstrip("\\n").split("\\t")
    children = []
    for rank in range(int(num_processes)):
        child = os.fork()
        if not child:
            os.dup2(2, 1)  # what is read from here is the parent's alone
            if int(num_processes) > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=num_processes, LOCAL_WORLD_SIZE=num_processes,
                    MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                )
            sys.stdin.close()
            sys.argv = ["dino", *arguments]
            code = 1
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
            finally:
                os._exit(code)  # tidying up takes seconds
        os.setpgid(child, child)  # to be killed with its workers, from now on
        children.append(child)
    print(*children, flush=True)
    codes = [os.waitpid(child, 0)[1] for child in children]
    print("ended", *codes, flush=True)
"""


class Killable:
    """
    A process from which runs of `dino` are forked.

    Args:
        folder: where they run.
        prelude: code that is run once, before.
    """

    def __init__(self, folder: Path, prelude: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", KILLED.replace("{prelude}", prelude)],
            cwd=folder,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(self, arguments: list[object], num_processes: int, seconds: float | None = None) -> bool:
        """Whether a run completes; after the given time one of its processes is killed, and then the others."""
        line = "\t".join(map(str, [*arguments, num_processes, free_port()]))
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        children = list(map(int, self.process.stdout.readline().split()))
        if seconds is not None:
            time.sleep(seconds)
            for child in random.sample(children, len(children)):
                kill_group(child)
        lines = iter(self.process.stdout.readline, "")
        ended = next(line for line in lines if line.startswith("ended"))
        return set(ended.split()[1:]) == {"0"}

    def close(self):
        self.process.kill()
        self.process.communicate()


def kill_group(leader: int):
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
