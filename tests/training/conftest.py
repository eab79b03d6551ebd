import pytest
from transformers.utils import logging


@pytest.fixture
def messages(monkeypatch, caplog):
    """What is warned of, by this package and transformers, whatever others have set."""
    monkeypatch.setattr(logging._get_library_root_logger(), "propagate", True)
    caplog.set_level(logging.WARNING, logger="modeling_dino")
    return lambda: [record.getMessage() for record in caplog.records]
