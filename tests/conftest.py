import gc
import logging
import os
import sys
from collections.abc import Callable


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client reads it
# before torch reads it: threads that wait for each other on cores that other tests need cost three times the time
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tiny_models import TINY_BACKBONES
from transformers.models.auto import modeling_auto
from transformers_common import PACKAGE


# The common tests look up by these names what kind of model a class is.
modeling_auto.MODEL_MAPPING_NAMES["dino"] = "DinoModel"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["dino"] = "DinoForImageClassification"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["dino"] = "DinoBackbone"

LEFT = "leaves logging changed"
collect_ignore = [] if PACKAGE.is_dir() else ["model/test_transformers_common.py"]


def pytest_report_header():
    if not PACKAGE.is_dir():
        return "transformers' common tests are left out: `make test` fetches them"


def pytest_terminal_summary(terminalreporter):
    """
    Shows how many cases of faulty input were tried, and which tests left logging changed, which pytest-xdist's workers
    cannot print.
    """
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, text in report.user_properties if report.when == "call" else ():
            if name != LEFT:
                terminalreporter.write_line(f"{name}: {text}")
    for report in terminalreporter.getreports(""):
        for name, text in report.user_properties if report.when == "teardown" else ():
            if name == LEFT:
                terminalreporter.write_line(f"{report.nodeid} {name}: {text}")


@pytest.fixture(autouse=True, scope="module")
def _garbage():
    """
    Lets the garbage collector leave alone what exists before a module's tests, above all what was imported. A run of
    the Trainer calls it, and traversing everything took up to half of the run's time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=sorted(TINY_BACKBONES))
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def one_thread():
    """Many small operations, which several threads slow down, above all where others keep the cores busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


PREFIX = "modeling_dino"
AS_CREATED = (logging.NOTSET, True, False)  # level, propagation and end of a logger that nobody has changed


def logging_state() -> dict[str, object]:
    """Below which level nothing is logged, and level, propagation and end of the loggers that tests read."""
    names = ["root", "transformers", *(name for name in logging.root.manager.loggerDict if name.startswith(PREFIX))]
    loggers = {name: logging.getLogger(None if name == "root" else name) for name in names}
    return {"": logging.root.manager.disable, **{n: (x.level, x.propagate, x.disabled) for n, x in loggers.items()}}


LOGGING = logging_state()


def restore_logging(when: str, record_property: Callable):
    """Makes logging as it was before the first test, and records what differed."""
    found = logging_state()
    differing = {name: value for name, value in found.items() if value != LOGGING.get(name, AS_CREATED)}
    if not differing:
        return
    record_property(LEFT, f"{when}: {differing}")
    logging.disable(LOGGING[""])
    for name in differing.keys() - {""}:
        logger = logging.getLogger(None if name == "root" else name)
        logger.level, logger.propagate, logger.disabled = LOGGING.get(name, AS_CREATED)
    logging.root.manager._clear_cache()


@pytest.fixture(autouse=True)
def _logging_as_before(record_property):
    """A test, an import or a fixture that leaves logging changed would make tests fail that read messages."""
    restore_logging("before", record_property)
    yield
    restore_logging("after", record_property)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def dino(monkeypatch, capsys):
    """Runs the command line; returns exit code, standard output and standard error."""

    from modeling_dino import cli  # here, since the tests of a GPU run where typer is not installed, too

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino", *map(str, arguments)])
        capsys.readouterr()  # what was printed before
        with pytest.raises(SystemExit) as stop:
            cli.main()
        output = capsys.readouterr()
        return stop.value.code, output.out, output.err

    return run
