"""Many runs of the command line, each in a fork of one process that has imported everything once."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


CONNECTED, TOO_LONG = 71, -14  # exit codes of a command that contacts a server, or does not end in time
MEMORY = 4 * 2**30  # that a command may take beyond what is imported, in bytes

SERVER = f"""
import json, os, resource, signal, socket, sys
import torch
torch.set_num_threads(1)
import accelerate, datasets, matplotlib.pyplot, PIL.Image, yaml
import pyarrow.csv, pyarrow.parquet, transformers.trainer
from modeling_dino.cli.app import main
from modeling_dino import DinoForImageClassification
import modeling_dino.evaluation.linear, modeling_dino.training.pretrain, modeling_dino.report.page
import conversion_scripts.convert

PAGES = int(open("/proc/self/statm").read().split()[0])
LIMIT = PAGES * resource.getpagesize() + {MEMORY}

def refuse(*_):
    os._exit({CONNECTED})

for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(case["seconds"])
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
        socket.socket.connect = socket.getaddrinfo = refuse
        os.chdir(case["folder"])
        for number, name in ((0, os.devnull), (1, case["stdout"]), (2, case["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["dino", *case["arguments"]]
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
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative for a signal), standard output and standard error."""

    code: int
    out: str
    err: str


class ForkedCommands:
    """
    Runs commands, one after the other; each can contact nobody, and take neither much memory nor much time.

    Args:
        logs: an empty folder for what the commands print.
    """

    def __init__(self, logs: Path):
        self.files = {name: str(logs / name) for name in ("stdout", "stderr")}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: object, folder: Path, seconds: int = 60) -> Outcome:
        """Runs `dino ARGUMENTS` in a folder."""
        case = {"arguments": list(map(str, arguments)), "folder": str(folder), "seconds": seconds, **self.files}
        self.server.stdin.write(json.dumps(case) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        out, err = (Path(file).read_text(encoding="utf-8", errors="replace") for file in self.files.values())
        return Outcome(code, out, err)

    def close(self):
        """Ends the process."""
        self.server.stdin.close()
        self.server.wait()
