import multiprocessing.util
import socket
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from modeling_dino.runtime.processes import has_room_for_sockets, reading_processes, shares_gpus


@pytest.mark.parametrize(
    ("gpus", "on_this_machine", "shares"), [(0, 2, False), (1, 1, False), (1, 2, True), (8, 8, False), (8, 9, True)]
)
def test_processes_that_share_a_gpu_are_told(monkeypatch, gpus, on_this_machine, shares):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_machine))
    assert shares_gpus() == shares


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
@pytest.mark.parametrize("length", [75, 76])
def test_where_sockets_have_no_room_images_are_read_in_one_process(monkeypatch, length):
    """Else reading would wait for ever."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x" * (length - 13)) as folder:
        assert len(folder) == length
        address = Path(folder) / "pymp-abcdefgh" / "listener-abcdefgh"  # as multiprocessing names them
        address.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(str(address))
                has_room = True
            except OSError:
                has_room = False
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.delattr(multiprocessing.util, "_SUN_PATH_MAX", raising=False)  # of newer versions of Python
        assert has_room_for_sockets() == has_room == (length == 75)
        assert reading_processes(0, 10_000) == 0
        if not has_room:
            with pytest.raises(ValueError, match="set TMPDIR to another, or num_workers=0"):
                reading_processes(2, 10_000)
            assert reading_processes(None, 10_000) == 0
