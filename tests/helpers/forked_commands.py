"""Many runs of the command line, each in a fork of one process that has imported everything once."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


CONNECTED, TOO_LONG = 71, -14  # exit codes of a command that contacts a server, or does not end in time
MEMORY = 4 * 2**30  # that a command may take beyond what is imported, in bytes

SERVER = rf"""
import gc, importlib, json, os, pkgutil, re, resource, signal, socket, sys, time
import torch
torch.set_num_threads(1)
import accelerate, datasets, PIL.Image, transformers.trainer
import conversion_scripts, modeling_dino
from modeling_dino.cli.app import main

# whatever a command imports when it runs
for package in (modeling_dino, conversion_scripts):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            with open(loaded.__file__, encoding="utf-8") as file:
                for name in re.findall(r'require\("([\w.]+)"', file.read()):
                    try:
                        importlib.import_module(name)
                    except ImportError:
                        pass
PIL.Image.init()
sys.argv = ["dino", "info", "--help"]
try:
    main()  # shows the help, for which typer imports what it needs
except SystemExit:
    pass
gc.collect()
gc.freeze()  # what is not traversed in a fork is not copied

PAGES = int(open("/proc/self/statm").read().split()[0])
LIMIT = PAGES * resource.getpagesize() + {MEMORY}

def refuse(*_):
    os._exit({CONNECTED})

def run(case, arguments, stdout, stderr):
    signal.alarm(case["seconds"])
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    resource.setrlimit(resource.RLIMIT_FSIZE, (case["file_bytes"], case["file_bytes"]))
    socket.socket.connect = socket.getaddrinfo = refuse
    os.chdir(case["folder"])
    for number, name in ((0, os.devnull), (1, stdout), (2, stderr)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    if case["user"] is not None:
        os.setuid(case["user"])
    sys.argv = ["dino", *arguments]
    code = 70
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    children = []
    for files in zip(case["commands"], case["stdout"], case["stderr"]):
        children.append(os.fork())
        if not children[-1]:
            run(case, *files)
        os.setpgid(children[-1], children[-1])  # to be killed with its workers, from now on
    if case["kill_after"] is not None:
        time.sleep(case["kill_after"])
        for child in children:
            os.killpg(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative for a signal), standard output and standard error."""

    code: int
    out: str
    err: str


class ForkedCommands:
    """
    Runs commands; each can contact nobody, and take neither much memory nor much time.

    Args:
        logs: an empty folder for what the commands print.
    """

    def __init__(self, logs: Path):
        self.logs = logs
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while self.server.stdout.readline() != "ready\n":  # after the help
            assert self.server.poll() is None

    def __call__(self, *arguments: object, folder: Path, **accident) -> Outcome:
        """Runs `dino ARGUMENTS` in a folder; `accident` as in `at_once`."""
        return self.at_once([arguments], folder, **accident)[0]

    def at_once(
        self,
        commands: Sequence[Sequence[object]],
        folder: Path,
        seconds: int = 60,
        kill_after: float | None = None,
        file_bytes: int = -1,
        user: int | None = None,
    ) -> list[Outcome]:
        """
        Runs several commands at the same time.

        Args:
            seconds: after which each is ended.
            kill_after: seconds after which all are killed.
            file_bytes: that a file can have, as if the disk were full then; -1 for any number.
            user: whose permissions the commands have.
        """
        files = {kind: [str(self.logs / f"{kind}{i}") for i in range(len(commands))] for kind in ("stdout", "stderr")}
        accident = {"seconds": seconds, "kill_after": kill_after, "file_bytes": file_bytes, "user": user}
        case = {"commands": [list(map(str, arguments)) for arguments in commands], "folder": str(folder)}
        self.server.stdin.write(json.dumps({**case, **files, **accident}) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        read = ([Path(file).read_text(encoding="utf-8", errors="replace") for file in files[kind]] for kind in files)
        return [Outcome(*parts) for parts in zip(codes, *read)]

    def close(self):
        """Ends the process; closing its input would not, where a fork of this process holds that open, too."""
        self.server.kill()
        self.server.communicate()
