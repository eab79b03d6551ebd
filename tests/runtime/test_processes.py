import pytest
import torch

from modeling_dino.runtime.processes import shares_gpus


@pytest.mark.parametrize(
    ("gpus", "on_this_machine", "shares"), [(0, 2, False), (1, 1, False), (1, 2, True), (8, 8, False), (8, 9, True)]
)
def test_processes_that_share_a_gpu_are_told(monkeypatch, gpus, on_this_machine, shares):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_machine))
    assert shares_gpus() == shares
