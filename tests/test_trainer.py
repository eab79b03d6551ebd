import torch
from golden_data import assert_close, read_golden, with_prefix
from pretraining_data import arguments
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_dino import DinoConfig, DinoForPreTraining
from modeling_dino.trainer import DinoTrainer


class GoldenCrops(Dataset):
    """The crops of the recorded run, in their order."""

    def __init__(self, training: dict, tensors: dict[str, torch.Tensor]):
        self.training, self.tensors, self.epoch = training, tensors, 0

    def __len__(self) -> int:
        return self.training["batch_size"] * self.training["steps_per_epoch"]

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        step, image = divmod(index, self.training["batch_size"])
        step += self.epoch * self.training["steps_per_epoch"]
        num_crops = self.training["num_global_crops"] + self.training["num_local_crops"]
        return {"pixel_values": [self.tensors[f"step{step}.crop{i}"][image] for i in range(num_crops)]}


class Recorder(TrainerCallback):
    """The center after each step."""

    def __init__(self):
        self.centers = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.centers.append(model.center.clone())


def golden_config(vit: dict, head: dict) -> DinoConfig:
    names = {
        "out_dim": "projection_dim",
        "hidden_dim": "head_hidden_dim",
        "bottleneck_dim": "head_bottleneck_dim",
        "nlayers": "head_num_layers",
        "use_bn": "head_use_bn",
        "norm_last_layer": "norm_last_layer",
    }
    return DinoConfig(backbone="vit_tiny", **vit, **{names[name]: value for name, value in head.items()})


def golden_arguments(training: dict) -> dict:
    rate, decay, momentum = (training[name] for name in ("learning_rate", "weight_decay", "teacher_momentum"))
    return {
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": training["batch_size"],
        "num_train_epochs": training["epochs"],
        "learning_rate": rate["base"],
        "final_learning_rate": rate["final"],
        "warmup_epochs": rate["warmup_epochs"],
        "weight_decay": decay["base"],
        "final_weight_decay": decay["final"],
        "teacher_momentum": momentum["base"],
        "final_teacher_momentum": momentum["final"],
        "warmup_teacher_temperature": training["warmup_teacher_temp"],
        "teacher_temperature": training["teacher_temp"],
        "teacher_temperature_warmup_epochs": training["warmup_teacher_temp_epochs"],
        "student_temperature": training["student_temp"],
        "center_momentum": training["center_momentum"],
        "max_grad_norm": training["clip_grad"],
        "freeze_last_layer_epochs": training["freeze_last_layer_epochs"],
        "num_global_crops": training["num_global_crops"],
    }


def without_key_bias(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The key third of this bias has no gradient in exact arithmetic, so that Adam moves it by rounding noise."""
    return tensor.unflatten(0, (3, -1))[[0, 2]] if name.endswith("attn.qkv.bias") else tensor


def test_the_originals_training(tmp_path):
    metadata, tensors = read_golden("training")
    training = metadata["training"]
    model = DinoForPreTraining(golden_config(metadata["vit"], metadata["head"]))
    for network in (model.student, model.teacher):
        network.load_state_dict(with_prefix(tensors, "student_init."))
    recorder = Recorder()
    trainer = DinoTrainer(
        model,
        arguments(tmp_path, **golden_arguments(training)),
        train_dataset=GoldenCrops(training, tensors),
        callbacks=[recorder],
    )
    trainer.train()
    steps = training["epochs"] * training["steps_per_epoch"]
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert len(losses) == steps
    for step in range(steps):
        assert_close(torch.tensor([losses[step]]), tensors[f"step{step}.loss"])
        assert_close(recorder.centers[step], tensors[f"step{step}.center_after"])
    for which in ("student", "teacher"):
        expected = with_prefix(tensors, f"{which}_final.")
        actual = getattr(model, which).state_dict()
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_close(without_key_bias(name, actual[name]), without_key_bias(name, expected[name]))
