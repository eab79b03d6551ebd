import json
import logging
import math
import re
import shutil

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from random_crops import (
    OBJECTIVES,
    KillAt,
    Killed,
    RandomCrops,
    arguments,
    assert_close_weights,
    crops_of_several_sizes,
    losses_of,
    tiny_model,
    trainer_of,
    without_key_bias,
)
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_dino import DinoConfig, DinoForPreTraining, DinoModel
from modeling_dino.training.arguments import DinoTrainingArguments
from modeling_dino.training.trainer import DinoTrainer


@pytest.fixture(autouse=True)
def _one_thread():
    """More would only wait for each other: the models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.slow
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


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "accumulation", "data"),
    [
        ("vit", 1, RandomCrops),
        ("vit", 2, RandomCrops),
        ("resnet", 1, RandomCrops),
        ("dinov2", 1, RandomCrops),
        ("dinov2", 2, RandomCrops),
        ("dinov3", 2, RandomCrops),
        ("dinov2", 2, crops_of_several_sizes),
    ],
)
def test_killed_and_resumed_it_ends_as_if_it_had_not(tmp_path, family, accumulation, data):
    """Also in the middle of an epoch and of what is logged together; with drop path, which draws random numbers."""
    options = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 3,
        "per_device_train_batch_size": 4 // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    overrides = {"head_use_bn": True} if family == "resnet" else {"drop_path_rate": 0.3}
    options |= OBJECTIVES.get(family, {})

    def new_trainer(name: str) -> DinoTrainer:
        return trainer_of(tmp_path / name, tiny_model(family, **overrides), data(), **options)

    whole = new_trainer("whole")
    whole.train()
    for step in (2, 4, 9):
        trainer = new_trainer("killed")
        trainer.add_callback(KillAt(step))
        if step > 2:
            torch.manual_seed(step)  # another state of the world
        with pytest.raises(Killed):
            trainer.train(resume_from_checkpoint=True if step > 2 else None)
    resumed = new_trainer("killed")
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, whole.model)
    for a, b in zip(resumed.optimizer.param_groups, whole.optimizer.param_groups):
        for x, y in zip(a["params"], b["params"]):
            for name, value in whole.optimizer.state[y].items():
                assert torch.equal(resumed.optimizer.state[x][name], value)
    assert (resumed.steps.watch, resumed.steps.patch_watch) == (whole.steps.watch, whole.steps.patch_watch)
    assert resumed.state.log_history[:-1] == whole.state.log_history[:-1]  # the last one tells the time it took
    assert len(whole.state.log_history) == 1 + 4


@pytest.mark.slow
def test_a_checkpoint_that_was_not_saved_whole_is_left_aside(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    state = tmp_path / "checkpoint-8" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (tmp_path / "checkpoint-9").mkdir()
    resumed = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, trainer.model)
    assert json.loads(state.read_text())["global_step"] == 8
    with pytest.raises(ValueError, match="no whole checkpoint"):
        trainer_of(tmp_path / "new").train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_steps_of_another_size_are_refused(tmp_path):
    trainer_of(tmp_path, save_strategy="steps", save_steps=2).train()
    other = trainer_of(tmp_path, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="batch_size=4, not 8"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "objectives", "data"),
    [
        ("vit", {}, RandomCrops),
        ("dinov2", {"ibot_weight": 1.0}, RandomCrops),
        ("dinov2", {"ibot_weight": 1.0, "targets": "sinkhorn"}, RandomCrops),
        ("dinov2", {"koleo_weight": 0.1, "koleo_neighbours": 5}, RandomCrops),
        ("vit", {"koleo_weight": 0.1, "targets": "sinkhorn"}, RandomCrops),
        ("dinov3", {"gram_weight": 1.0}, RandomCrops),
        ("dinov3", OBJECTIVES["dinov3"], RandomCrops),
        ("dinov3", OBJECTIVES["dinov3"], crops_of_several_sizes),
    ],
)
def test_accumulated_batches_equal_one(tmp_path, family, objectives, data):
    options = {"num_train_epochs": 3, **objectives}
    whole = trainer_of(tmp_path / "whole", tiny_model(family), data(), per_device_train_batch_size=8, **options)
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = trainer_of(tmp_path / "parts", tiny_model(family), data(), **options)
    for trainer in (whole, parts):
        trainer.train()
    assert len(losses_of(whole)) == 6
    assert losses_of(parts) == pytest.approx(losses_of(whole), rel=1e-5)
    centers = ("center", "patch_center") if "ibot_weight" in objectives else ("center",)
    for center in centers if objectives.get("targets") != "sinkhorn" else ():
        assert_close(getattr(parts.model, center), getattr(whole.model, center))
    assert_close_weights(parts.model.state_dict(), whole.model.state_dict())


def test_with_crops_of_several_sizes_the_images_come_in_the_same_order(tmp_path):
    """Each with the step that it is in, of all its parts."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}

    def order(needs_step: bool) -> list[list]:
        data = RandomCrops(num_images=14)
        data.needs_step = needs_step
        loader = trainer_of(tmp_path, data=data, **options).get_train_dataloader()
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            epochs.append([index for batch in loader.batch_sampler for index in batch])
        return epochs

    plain, with_steps = order(False), order(True)
    assert plain[0] != plain[1]
    assert with_steps == [[(place // 4, index) for place, index in enumerate(epoch)] for epoch in plain]


@pytest.mark.slow
def test_an_epoch_is_whole_steps(tmp_path):
    """Of 19 images with a batch of 8, two steps, however the batch is made up."""
    losses = []
    for batch_size in (8, 2):
        options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 8 // batch_size}
        trainer = trainer_of(tmp_path, data=RandomCrops(19), **options)
        trainer.train()
        losses.append(losses_of(trainer))
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_last_layer_is_not_trained_in_the_first_epochs(tmp_path):
    trainer = trainer_of(tmp_path, freeze_last_layer_epochs=1, warmup_epochs=0)
    before, snapshots = tiny_model().student.head.last_layer.weight_v, {}

    class Snapshot(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            snapshots[state.global_step] = model.student.head.last_layer.weight_v.detach().clone()

    trainer.add_callback(Snapshot())
    trainer.train()
    assert torch.equal(snapshots[4], before)
    assert not torch.equal(snapshots[5], before)


def test_what_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, teacher_temperature=0.07, teacher_temperature_warmup_epochs=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 8
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["teacher_entropy"] + entry["kl_divergence"], rel=1e-5)
        assert 0 < entry["teacher_entropy"] < math.log(24)
        assert entry["center_norm"] > 0
    assert [entry["teacher_temperature"] for entry in logs] == [0.04] * 4 + [0.07] * 4
    assert logs[0]["learning_rate"] == 0
    assert logs[3]["learning_rate"] == logs[4]["learning_rate"] == 1e-3
    assert logs[0]["weight_decay"] == pytest.approx(0.04)
    assert logs[4]["weight_decay"] == pytest.approx(0.22)
    assert logs[0]["teacher_momentum"] == pytest.approx(0.9)
    assert logs[4]["teacher_momentum"] == pytest.approx(0.95)


def test_a_run_shorter_than_its_warmup(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=2, warmup_epochs=10)
    trainer.train()
    assert [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry] == pytest.approx(
        [0, 1e-3 / 39]
    )


@pytest.mark.parametrize("optim", ["adamw", "sgd", "lars", "adamw_torch"])
def test_optimizers_train(tmp_path, optim):
    trainer = trainer_of(tmp_path, optim=optim, warmup_epochs=0)
    trainer.train()
    assert not torch.equal(trainer.model.student.backbone.cls_token, tiny_model().student.backbone.cls_token)
    assert all(math.isfinite(loss) for loss in losses_of(trainer))


def test_saved_it_is_the_teacher(tmp_path, messages):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.save_model()
    assert_same_weights(DinoModel.from_pretrained(tmp_path), trainer.model.teacher)
    assert_same_weights(DinoModel.from_pretrained(tmp_path, which="student"), trainer.model.student)
    assert not messages()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "steps"), [({"bf16": True}, 3), ({"gradient_checkpointing": True}, None)])
def test_modes_that_give_nearly_the_same(tmp_path, options, steps):
    """In bfloat16 the first steps: with so few images a difference grows up to thirtyfold a step."""
    plain, other = trainer_of(tmp_path), trainer_of(tmp_path, **options)
    for trainer in (plain, other):
        trainer.train()
    expected = pytest.approx(losses_of(plain)[:steps], abs=0.05 if "bf16" in options else 1e-4)
    assert losses_of(other)[:steps] == expected
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compiled_it_gives_the_same(tmp_path):
    torch._dynamo.reset()
    options = {"max_steps": 3, "teacher_temperature": 0.07, "teacher_temperature_warmup_epochs": 2}
    plain = trainer_of(tmp_path, **options)
    compiled = trainer_of(tmp_path, torch_compile=True, torch_compile_backend="aot_eager", **options)
    for trainer in (plain, compiled):
        trainer.train()
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-4)
    compiled.save_model()
    assert_same_weights(DinoModel.from_pretrained(tmp_path), compiled.model.teacher)


# what can go wrong


class ConstantCrops(RandomCrops):
    """The same picture, always."""

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": [torch.zeros(3, size, size) for size in self.sizes]}


COLLAPSES = {
    "constant": (
        {"center_momentum": 1.0, "teacher_temperature": 0.2, "warmup_teacher_temperature": 0.2},
        ConstantCrops(),
        "same for every image",
    ),
    "constant, centered": ({}, ConstantCrops(), "collapsed"),
    "uniform": ({"teacher_temperature": 100.0, "warmup_teacher_temperature": 100.0}, RandomCrops(), "uniform"),
    "one prototype": (
        {"teacher_temperature": 1e-4, "warmup_teacher_temperature": 1e-4, "center_momentum": 1.0},
        RandomCrops(),
        "one prototype",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapse_is_named_within_a_hundred_steps(tmp_path, caplog, name):
    options, data, message = COLLAPSES[name]
    trainer = trainer_of(tmp_path, data=data, max_steps=100, logging_steps=100, **options)
    with caplog.at_level(logging.WARNING, logger="modeling_dino"):
        trainer.train()
    (warning,) = [record.getMessage() for record in caplog.records if "step" in record.getMessage()]
    assert message in warning


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "names"), [(1.0, "collapsed|explodes"), (30.0, "is (nan|inf) at step")])
def test_a_run_that_explodes_is_named_or_stopped(tmp_path, caplog, rate, names):
    model = tiny_model(norm_last_layer=False)
    options = {"learning_rate": rate, "final_learning_rate": rate, "max_grad_norm": 0, "warmup_epochs": 0}
    trainer, stopped = trainer_of(tmp_path, model, max_steps=100, **options), ""
    with caplog.at_level(logging.WARNING, logger="modeling_dino"):
        try:
            trainer.train()
        except FloatingPointError as error:
            stopped = str(error)
    assert re.search(names, caplog.text + stopped)


@pytest.mark.slow
def test_an_exploding_loss_is_named(tmp_path, caplog):
    class Explode(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            model.student.head.last_layer.weight_g.mul_(1.5)

    model = tiny_model()
    trainer = trainer_of(tmp_path, model, max_steps=40, logging_steps=100)
    trainer.add_callback(Explode())
    with caplog.at_level(logging.WARNING, logger="modeling_dino"):
        trainer.train()
    assert "the loss explodes" in caplog.text


@pytest.mark.slow
def test_a_healthy_run_is_not_named(tmp_path, caplog):
    trainer = trainer_of(tmp_path, max_steps=100, learning_rate=3e-4, teacher_momentum=0.99)
    with caplog.at_level(logging.WARNING, logger="modeling_dino"):
        trainer.train()
    assert not caplog.records
    information = [logs["image_information"] for logs in trainer.state.log_history if "loss" in logs]
    assert sum(information[-10:]) > 2 * sum(information[:10])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                model.student.head.last_layer.weight_v.data[0, 0] = math.nan

    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
    trainer.add_callback(Poison())
    with pytest.raises(FloatingPointError, match=r"nan at step 4: .*last good checkpoint is .*checkpoint-2$"):
        trainer.train()
    shutil.rmtree(tmp_path)
    trainer = trainer_of(tmp_path)
    trainer.model.student.head.last_layer.weight_v.data[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match="no step was saved"):
        trainer.train()


def poison_gradient(network, *_):
    network.student.head.last_layer.weight_v.grad.view(-1)[0] = math.nan


def poison_weights(network, *_):
    """As a far too long update does: weights that are finite, and too great to compute a loss with."""
    with torch.no_grad():
        network.student.head.mlp[0].weight.fill_(1e38)


@pytest.mark.parametrize(
    ("event", "poison", "names", "good", "aside"),
    [
        ("on_step_end", poison_weights, "the loss is (nan|inf) at step 4", 3, [4]),
        ("backward", poison_gradient, "the norm of the gradient is nan at step 4", 4, []),
    ],
)
def test_a_broken_update_is_not_in_the_checkpoint_that_is_named(tmp_path, event, poison, names, good, aside):
    """Nor is it applied, where it can be told before; what has it is set aside, and not gone on from."""

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if (event, state.global_step) == ("on_step_end", 4):
                poison(model)

    class Poisoned(DinoTrainer):
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            if (event, self.state.global_step) == ("backward", 4):
                poison(self.model)
            return loss

    options = {"save_strategy": "steps", "save_steps": 1, "max_grad_norm": 0}
    trainer = Poisoned(tiny_model(), arguments(tmp_path, **options), train_dataset=RandomCrops(), callbacks=[Poison()])
    with pytest.raises(FloatingPointError, match=rf"{names}: .*last good checkpoint is .*checkpoint-{good}$"):
        trainer.train()
    assert sorted(tmp_path.glob("set-aside-*")) == [tmp_path / f"set-aside-checkpoint-{step}" for step in aside]
    if event == "backward":
        assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    resumed, whole = trainer_of(tmp_path, **options), trainer_of(tmp_path / "whole", **options)
    resumed.train(resume_from_checkpoint=True)
    whole.train()
    assert_same_weights(resumed.model, whole.model)


def test_a_bad_batch_ends_the_run_before_its_update(tmp_path):
    class BadBatch(RandomCrops):
        def __getitem__(self, index: int) -> dict:
            item = super().__getitem__(index)
            if self.epoch == 1 and index == 7:
                item["pixel_values"][0][0, 0, 0] = math.nan
            return item

    trainer = trainer_of(tmp_path, data=BadBatch(), save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step [4-7]: ") as raised:
        trainer.train()
    step = int(re.search(r"at step (\d)", str(raised.value))[1])
    assert str(raised.value).endswith(f"checkpoint-{step - 1}")
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: trainer_of(folder, data=RandomCrops(3)).train(), "3 images are fewer than a batch of 4"),
        (lambda folder: trainer_of(folder, DinoModel(tiny_model().config)), "from_model"),
        (lambda folder: trainer_of(folder, tiny_model().to(torch.bfloat16)), "bf16=True"),
        (lambda folder: DinoTrainingArguments(folder, teacher_momentum=1.5), "teacher_momentum=1.5"),
        (lambda folder: DinoTrainingArguments(folder, student_temperature=0.0), "student_temperature=0.0"),
        (lambda folder: DinoTrainingArguments(folder, warmup_epochs=-1), "warmup_epochs=-1"),
        (lambda folder: DinoTrainingArguments(folder, optim="adamx"), "adamx"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
