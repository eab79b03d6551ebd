import pytest
from transformers.utils import logging


@pytest.fixture
def messages(monkeypatch, caplog):
    """What is logged."""
    monkeypatch.setattr(logging._get_library_root_logger(), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]
