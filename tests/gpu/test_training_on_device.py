import contextlib
import copy
import shutil

import pytest
import torch
from random_crops import OBJECTIVES, RandomCrops, arguments, tiny_model, trainer_of

from modeling_dino import Objectives
from modeling_dino.training.masking import mask_batch
from modeling_dino.training.optimization import clip_each_gradient, parameter_groups, set_rates
from modeling_dino.training.steps import StepSums
from modeling_dino.training.trainer import collate_crops, draw_step_masks


SETTINGS = {
    "dino": {},
    "sinkhorn": {"targets": "sinkhorn"},
    "ibot": {"ibot_weight": 1.0},
    "koleo": {"koleo_weight": 0.1},
    "gram": {"gram_weight": 1.0},
    "all": {"ibot_weight": 1.0, "koleo_weight": 0.1, "gram_weight": 1.0, "targets": "sinkhorn"},
}
GRID = (4, 4)  # of the global crops


def batch_of(folder, objectives: Objectives, device: torch.device) -> dict:
    """Crops, and masks as the trainer hands them over."""
    data = RandomCrops()
    batch = {"pixel_values": [crop.to(device) for crop in collate_crops([data[i] for i in range(4)])["pixel_values"]]}
    if objectives.ibot_weight:
        args = arguments(folder, ibot_weight=1.0)
        batch["bool_masked_pos"] = mask_batch(draw_step_masks(args, 0, GRID).flatten(0, 1)).to(device)
    return {**batch, "objectives": objectives}


def step_on(model, batch: dict, device: torch.device, dtype: torch.dtype) -> tuple[dict, dict]:
    """Losses and gradients."""
    model = copy.deepcopy(model).to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        output = model(**batch)
    output.loss.backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.student.named_parameters() if p.grad is not None}
    return {name: loss.detach().float().cpu() for name, loss in output.losses.items()}, gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_those_of_a_cpu(device, tmp_path, name, dtype):
    if (device.type, dtype) == ("cpu", torch.float16):
        pytest.skip("fp16 needs a GPU")
    objectives, model = Objectives(**SETTINGS[name]), tiny_model("dinov2").train()
    if objectives.gram_weight:
        model.add_gram_teacher()
    cpu = torch.device("cpu")
    expected, expected_gradients = step_on(model, batch_of(tmp_path, objectives, cpu), cpu, torch.float32)
    found, gradients = step_on(model, batch_of(tmp_path, objectives, device), device, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for loss, value in expected.items():
        assert found[loss].item() == pytest.approx(value.item(), rel=tolerance, abs=tolerance / 10)
    together = [
        torch.cat([values[name].flatten() for name in expected_gradients])
        for values in (gradients, expected_gradients)
    ]
    difference = (together[0] - together[1]).norm() / together[1].norm()
    assert difference <= (1e-3 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_does_not_wait_for_the_device(device, tmp_path, name):
    objectives, model = Objectives(**SETTINGS[name]), tiny_model("dinov2").train()
    if objectives.gram_weight:
        model.add_gram_teacher()
    model = model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model.student), fused=True)
    batch, sums = batch_of(tmp_path, objectives, device), StepSums()

    def step():
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output = model(**batch)
        sums.add(output)
        output.loss.backward()
        clip_each_gradient(model.student.parameters(), 3.0)
        set_rates(optimizer, 1e-3, 0.04)
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.99)
        model.update_center(output.teacher_projection)

    step()  # the first one waits, for the library's own preparations
    with no_waits(device):
        step()
        if objectives.ibot_weight:
            mask_batch(draw_step_masks(arguments(tmp_path, ibot_weight=1.0), 1, GRID).flatten(0, 1)).to(device)
    means, norm = sums.read(torch.ones((), device=device))
    assert norm == 1
    assert all(torch.tensor(list(means.values())).isfinite())


@contextlib.contextmanager
def no_waits(device: torch.device):
    """Fails where the process waits for a GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def deterministic(monkeypatch):
    """What `full_determinism` sets for the whole process is put back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "1")
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, before[1]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("backbone", ["vit", "dinov2"])
def test_a_resumed_run_is_the_same_bit_for_bit(device, tmp_path, backbone, precision, deterministic):
    """With deterministic algorithms; drop path draws from the device's generator."""
    options = {**OBJECTIVES.get(backbone, {}), "full_determinism": True, "max_steps": 4, "save_strategy": "steps"}
    options |= {"save_steps": 2, "use_cpu": device.type == "cpu", "bf16": precision == "bf16"}

    def run(folder, resume=False):
        trainer = trainer_of(folder, tiny_model(backbone, drop_path_rate=0.2), **options)
        trainer.train(resume_from_checkpoint=resume)
        return {name: tensor.cpu() for name, tensor in trainer.model.state_dict().items()}

    whole = run(tmp_path / "run")
    for step in (4,):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    resumed = run(tmp_path / "run", resume=True)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_trainer_learns_in_half_precision(device, tmp_path, precision):
    if (device.type, precision) == ("cpu", "fp16"):
        pytest.skip("fp16 needs a GPU")
    options = {"use_cpu": device.type == "cpu", precision: True, "num_train_epochs": 2}
    trainer = trainer_of(tmp_path, tiny_model(), **options)
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert torch.tensor(losses).isfinite().all()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
