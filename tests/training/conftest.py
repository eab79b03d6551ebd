import pytest
from transformers.utils import logging

from modeling_dino.training import trainer
from modeling_dino.training.curves import draw_curves


@pytest.fixture
def messages(monkeypatch, caplog):
    """What is warned of, by this package and transformers, whatever others have set."""
    monkeypatch.setattr(logging._get_library_root_logger(), "propagate", True)
    caplog.set_level(logging.WARNING, logger="modeling_dino")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    """Curves take longer than a run of a tiny model; the fixture `drawn` is for tests of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "draw_curves", lambda *_: None)
        yield


@pytest.fixture
def drawn(monkeypatch):
    """Curves are drawn."""
    monkeypatch.setattr(trainer, "draw_curves", draw_curves)
