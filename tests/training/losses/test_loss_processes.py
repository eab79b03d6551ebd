"""The losses in two processes are those of one with the whole batch, on a CPU with gloo."""

import loss_processes
import pytest
import torch
from golden_data import assert_close

from modeling_dino.training.losses.centering import update_center
from modeling_dino.training.losses.sinkhorn import sinkhorn_knopp


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("loss_processes")]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, torch.Tensor]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("loss_processes")
    torch.multiprocessing.spawn(loss_processes.run, (folder,), nprocs=loss_processes.NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(loss_processes.NUM_PROCESSES)]


@pytest.mark.parametrize("split", loss_processes.SPLITS)
def test_sinkhorn_balances_over_all_outputs(found, split):
    actual = torch.cat([process[f"targets {split}"] for process in found])
    assert_close(actual, sinkhorn_knopp(loss_processes.outputs(), loss_processes.TEMPERATURE))


@pytest.mark.parametrize("split", loss_processes.SPLITS)
def test_the_center_moves_towards_the_mean_of_all_outputs(found, split):
    expected = torch.ones(1, loss_processes.outputs().shape[1])
    update_center(expected, loss_processes.outputs(), 0.9)
    for process in found:
        assert_close(process[f"center {split}"], expected)


@pytest.mark.parametrize("num_neighbours", loss_processes.NEIGHBOURS)
def test_koleo_finds_neighbours_in_other_processes_and_pushes_them(found, num_neighbours):
    loss, gradient = loss_processes.koleo_of(loss_processes.features(), num_neighbours, over_processes=False)
    for process in found:
        assert_close(process[f"koleo {num_neighbours}"], loss)
        assert_close(process[f"koleo gradient {num_neighbours}"], gradient)


def test_koleo_of_each_process_by_itself_is_another():
    """So the test above tells them apart."""
    whole, _ = loss_processes.koleo_of(loss_processes.features(), 1, over_processes=False)
    parts = [loss_processes.koleo_of(part, 1, over_processes=False)[0] for part in loss_processes.features().chunk(2)]
    assert abs(whole - sum(parts) / 2) > 0.01
