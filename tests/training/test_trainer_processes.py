"""Training in two processes: the same as in one, on a CPU with gloo."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trainer_processes
from golden_data import assert_close
from random_crops import assert_close_weights

from modeling_dino import DinoModel
from modeling_dino.training.synchronized_batch_norm import SynchronizedBatchNorm, synchronize_batch_norms


# what is set up once takes long, so all of it runs in one process
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("trainer_processes")]

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    """A folder with what each scenario ended with in two processes."""
    folder = tmp_path_factory.mktemp("two_processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, HELPERS / "trainer_processes.py", folder],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HELPERS), str(HELPERS.parents[1])]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, dict]:
    """What each scenario ended with in one process."""
    folder = tmp_path_factory.mktemp("one_process")
    names = [name for name in trainer_processes.SCENARIOS if name not in trainer_processes.SAME_AS]
    for name in names:
        trainer_processes.run(name, folder / name, num_processes=1)
    return {name: torch.load(folder / name / "end.pt") for name in names}


@pytest.mark.parametrize("name", trainer_processes.SCENARIOS)
def test_two_processes_equal_one_with_twice_the_batch(two_processes, one_process, name):
    actual = torch.load(two_processes / name / "end.pt")
    expected = one_process[trainer_processes.SAME_AS.get(name, name)]
    assert len(actual["losses"]) == 8
    assert actual["losses"] == pytest.approx(expected["losses"], rel=2e-4)
    assert_close_weights(actual["state_dict"], expected["state_dict"])
    centers = [key for key in ("center", "patch_center") if expected["state_dict"].get(key, torch.zeros(1)).any()]
    assert centers or name.startswith("dinov3")  # which has none
    for center in centers:
        assert_close(actual["state_dict"][center], expected["state_dict"][center], tolerance=2e-5)


@pytest.mark.parametrize("name", trainer_processes.SCENARIOS)
def test_what_two_processes_saved_is_the_teacher(two_processes, name):
    model = DinoModel.from_pretrained(two_processes / name)
    state_dict = torch.load(two_processes / name / "end.pt")["state_dict"]
    assert all(torch.equal(tensor, state_dict[f"teacher.{key}"]) for key, tensor in model.state_dict().items())


def test_one_process_goes_on_from_what_two_saved(two_processes, one_process, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(two_processes / "vit", folder)
    for checkpoint in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(folder / checkpoint)
    trainer_processes.run("vit", folder, num_processes=1, resume=True)
    resumed = torch.load(folder / "end.pt")
    assert resumed["losses"] == pytest.approx(one_process["vit"]["losses"], rel=2e-4)
    assert_close_weights(resumed["state_dict"], one_process["vit"]["state_dict"])


@pytest.mark.parametrize("family", trainer_processes.SHARDED)
def test_sharded_parameters_are_clipped_and_averaged_as_whole_ones(two_processes, tmp_path, family):
    actual = torch.load(two_processes / "sharded.pt")[family]
    expected = trainer_processes.run_sharded(family, tmp_path, rank=0, num_processes=1)
    assert_close_weights(
        actual, expected, tolerance=2e-4 if family == "vit" else 5e-4
    )  # of DINOv3 2.1e-4 was measured


def test_a_classifier_of_a_users_own_trains_in_two_processes(two_processes):
    actual = torch.load(two_processes / "classifier.pt")
    assert_close_weights(actual, trainer_processes.run_classifier(rank=0, num_processes=1))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_synchronized_batch_norm_in_one_process_is_batch_norm(shape):
    """With the process group of one, so that its own arithmetic is used; forward, backward and statistics."""
    plain = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(3)
    torch.nn.init.normal_(plain.weight)
    ours = type(plain)(3)
    ours.load_state_dict(plain.state_dict())
    synchronize_batch_norms(ours)
    assert type(ours) is SynchronizedBatchNorm
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for _ in range(3):
            inputs = torch.randn(shape) + 5
            a, b = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
            expected, actual = plain(a), ours(b)
            assert_close(actual.detach(), expected.detach())
            target = torch.randn(shape)
            (expected * target).sum().backward()
            (actual * target).sum().backward()
            assert_close(b.grad, a.grad)
            assert_close(ours.weight.grad, plain.weight.grad)
        for name, value in plain.state_dict().items():
            assert torch.allclose(ours.state_dict()[name].float(), value.float(), rtol=1e-5)
        assert_close(ours.eval()(inputs).detach(), plain.eval()(inputs).detach())
    finally:
        torch.distributed.destroy_process_group()
