"""Several losses in one run: what cannot work is refused before training begins, and what needs care is right."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from golden_data import assert_close
from random_crops import OBJECTIVES, RandomCrops, tiny_model, trainer_of
from safetensors.torch import load_file
from tiny_models import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from modeling_dino import DinoForPreTraining, DinoModel, Objectives
from modeling_dino.training.arguments import DinoTrainingArguments


pytestmark = pytest.mark.usefixtures("one_thread")
PATCHES = Objectives(ibot_weight=1.0)
GRAM = Objectives(gram_weight=1.0)
OF_TWO = {"koleo_weight": 0.1, "per_device_train_batch_size": 2}


class StopAt(TrainerCallback):
    """Stops a run after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def crops_of(num_images: int = 3, sizes=(32, 32, 16)) -> list[torch.Tensor]:
    return [torch.randn(num_images, 3, size, size) for size in sizes]


def masks_of(num_crops: int = 6, num_patches: int = 16, num_masked: int = 5) -> torch.Tensor:
    masks = torch.zeros(num_crops, num_patches, dtype=torch.bool)
    masks[::2, :num_masked] = True
    return masks


# what is computed


def test_losses_have_their_names_and_their_weighted_sum_is_the_loss():
    model = DinoForPreTraining(tiny_config("dinov2", patch_head=True, patch_projection_dim=20)).train()
    model.add_gram_teacher()
    objectives = Objectives(dino_weight=2.0, dino_local_weight=0.5, ibot_weight=3.0, koleo_weight=0.1, gram_weight=5.0)
    output = model(crops_of(), bool_masked_pos=masks_of(), objectives=objectives)
    losses = output.losses
    assert set(losses) == {"dino_global", "dino_local", "ibot", "koleo", "gram"}
    of_crops = 2.0 * (2 * losses["dino_global"] + 0.5 * 2 * losses["dino_local"]) / 4  # 2 of 4 pairs each
    assert_close(output.loss, of_crops + 3 * losses["ibot"] + 0.1 * losses["koleo"] + 5 * losses["gram"])
    assert output.teacher_patch_projection.shape == (15, 20)
    assert model.patch_center.shape == (1, 20)
    assert output.mask_share == pytest.approx(15 / 96)
    output.loss.backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None for network in (model.teacher, model.gram_teacher) for p in network.parameters())


def test_the_parts_of_dinos_loss_are_its_loss():
    model, crops = tiny_model().eval(), crops_of(sizes=(32, 32, 16, 16, 16))
    whole = model(crops)
    parts = model(crops, objectives=Objectives(koleo_weight=1e-9))
    assert_close(parts.loss.detach(), whole.loss.detach())
    assert_close(parts.kl_divergence, whole.kl_divergence)
    assert_close(parts.image_information, whole.image_information)


@pytest.mark.parametrize("family", ["resnet", "convnext", "xcit"])
class LargestOutputs(TorchDispatchMode):
    """Notes how many rows of so many prototypes the largest tensor has that is computed."""

    def __init__(self, num_prototypes: int):
        super().__init__()
        self.num_prototypes, self.rows = num_prototypes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        self.rows = max(self.rows, *(size // self.num_prototypes for size in sizes), 0)
        return found


@pytest.mark.parametrize("num_masked", [0, 2])
@pytest.mark.parametrize("patch_head", [False, True])
def test_heads_see_masked_patches_alone(patch_head, num_masked):
    """Of 6 global crops with 16 patches each: nothing of images x patches x prototypes is made."""
    num_prototypes = 10_000
    model = DinoForPreTraining(tiny_config("dinov2", patch_head=patch_head, projection_dim=num_prototypes)).train()
    with LargestOutputs(num_prototypes) as largest:
        masks = masks_of(num_masked=num_masked)
        model(crops_of(), bool_masked_pos=masks, objectives=Objectives(ibot_weight=1.0)).loss.backward()
    bottleneck = model.config.head_bottleneck_dim  # rows of the weight, transposed
    assert largest.rows <= max(9 + int(masks.sum()), bottleneck) < 96


@pytest.mark.parametrize(("overrides", "passes"), [({}, 1), ({"patch_head": True}, 1), ({"head_use_bn": True}, 2)])
def test_a_head_that_crops_and_patches_share_passes_once_over_its_prototypes(overrides, passes, monkeypatch):
    model = DinoForPreTraining(tiny_config("dinov2", **overrides)).train()
    calls = []
    for network in (model.student, model.teacher):
        network.head.register_forward_hook(lambda head, _, output: calls.append(head))
    arguments = {"bool_masked_pos": masks_of(), "objectives": PATCHES}
    crops = crops_of()
    output = model(crops, **arguments)
    assert [calls.count(network.head) for network in (model.student, model.teacher)] == [passes] * 2
    output.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.student.parameters()]
    model.zero_grad()
    monkeypatch.setattr("modeling_dino.training.views.project", project_apart)
    expected = model(crops, **arguments)
    expected.loss.backward()
    assert_close(output.loss.detach(), expected.loss.detach())
    for name in ("student_projection", "teacher_projection", "teacher_patch_projection"):
        assert_close(output[name].detach(), expected[name].detach())
    for gradient, parameter in zip(gradients, model.student.parameters()):
        assert (gradient - parameter.grad).abs().max() <= 1e-5 * parameter.grad.abs().max() + 1e-8


def project_apart(network: DinoModel, features: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One pass for crops, and one for patches."""
    return network.head(features), network.project_patches(patches)


def test_koleo_needs_no_patches(family):
    model = DinoForPreTraining(tiny_config(family)).train()
    output = model(crops_of(sizes=(32, 32, 32)), objectives=Objectives(koleo_weight=0.1))
    assert set(output.losses) == {"koleo", "dino_global", "dino_local"}
    output.loss.backward()


def test_gram_anchoring_needs_no_masks_and_no_mask_token():
    model = tiny_model("xcit").eval()
    model.add_gram_teacher()
    assert model(crops_of(), objectives=GRAM).losses["gram"] < 1e-9  # they are equal


def test_a_process_may_have_no_masked_patch():
    model = tiny_model("dinov2", patch_head=True).train()
    output = model(crops_of(), bool_masked_pos=masks_of(num_masked=0), objectives=Objectives(0.0, ibot_weight=1.0))
    assert output.loss == output.patch_entropy == output.patch_information == 0
    output.loss.backward()
    reached = [*model.student.backbone.parameters(), *model.student.patch_head.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in reached)


def test_the_gram_teacher_may_see_other_crops_and_be_of_another_width():
    model = tiny_model("dinov3").train()
    larger = DinoModel(tiny_config("dinov3", hidden_size=64, head_type=None))
    model.add_gram_teacher(larger)
    crops = crops_of()
    seen = [torch.nn.functional.interpolate(crop, (64, 64)) for crop in crops[:2]]
    output = model(crops, objectives=GRAM, gram_pixel_values=seen)
    assert output.losses["gram"] > 0
    assert not model.can_update_gram_teacher


def test_teachers_have_nothing_random():
    rope = {"pos_embed_rescale": 2.0, "pos_embed_shift": 0.5, "pos_embed_jitter": 2.0, "drop_path_rate": 0.5}
    model = tiny_model("dinov3", **rope).train()
    model.add_gram_teacher()
    crops, masks = crops_of(), masks_of()
    first, second = (model(crops, bool_masked_pos=masks, objectives=PATCHES) for _ in range(2))
    assert torch.equal(first.teacher_patch_projection, second.teacher_patch_projection)
    assert not torch.equal(first.student_projection, second.student_projection)
    assert torch.equal(model.gram_teacher(crops[0]).patch_tokens, model.gram_teacher(crops[0]).patch_tokens)


def test_local_crops_have_their_norm_in_training():
    model = tiny_model("dinov3", untie_global_and_local_cls_norm=True).train()
    with torch.no_grad():
        model.student.backbone.local_cls_norm.weight.mul_(3)
    model(crops_of(sizes=(32, 32, 32))).loss.backward()
    assert model.student.backbone.local_cls_norm.weight.grad.any()


def test_a_run_with_a_gram_teacher_is_saved_and_loaded(tmp_path, messages):
    model = tiny_model("dinov3")
    model.add_gram_teacher()
    model.save_pretrained(tmp_path)
    loaded = DinoForPreTraining.from_pretrained(tmp_path)
    assert loaded.gram_teacher is None
    for network in (loaded.teacher, DinoModel.from_pretrained(tmp_path)):
        assert torch.equal(network.backbone.cls_token, model.teacher.backbone.cls_token)
    assert "gram_teacher" not in "".join(messages())


# runs


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("family", OBJECTIVES)
def test_modes_that_give_nearly_the_same(tmp_path, family, options):
    """The first steps: with so few images a difference grows."""
    given = {**OBJECTIVES[family], "max_steps": 3}
    plain = trainer_of(tmp_path, tiny_model(family), **given)
    other = trainer_of(tmp_path, tiny_model(family), **given, **options)
    for trainer in (plain, other):
        trainer.train()
    for expected, actual in zip(plain.state.log_history[:3], other.state.log_history[:3]):
        terms = [name for name in expected if name.endswith("loss")]
        assert len(terms) > 4
        for name in terms:
            tolerance = 0.1 if "bf16" in options else 1e-4
            assert actual[name] == pytest.approx(expected[name], abs=tolerance, rel=tolerance / 10), name


@pytest.mark.slow
def test_a_collapse_at_masked_patches_is_named(tmp_path, caplog):
    class ConstantCrops(RandomCrops):
        def __getitem__(self, index: int) -> dict:
            return {"pixel_values": [torch.zeros(3, size, size) for size in self.sizes]}

    options = {"teacher_temperature": 100.0, "warmup_teacher_temperature": 100.0, "dino_weight": 0.0}
    trainer = trainer_of(tmp_path, tiny_model("dinov2"), ConstantCrops(), max_steps=60, ibot_weight=1.0, **options)
    with caplog.at_level(logging.WARNING, logger="modeling_dino"):
        trainer.train()
    (warning,) = [record.getMessage() for record in caplog.records if "step" in record.getMessage()]
    assert "output at masked patches has collapsed: it is uniform, whatever the patch" in warning


@pytest.mark.slow
def test_a_healthy_run_is_not_named(tmp_path, caplog):
    options = {"max_steps": 80, "learning_rate": 3e-4, "teacher_momentum": 0.99}
    for family in OBJECTIVES:
        with caplog.at_level(logging.WARNING, logger="modeling_dino"):
            trainer_of(tmp_path, tiny_model(family), **OBJECTIVES[family], **options).train()
    assert not caplog.records


def test_masks_depend_on_seed_and_step_alone(tmp_path):
    options = {"ibot_weight": 1.0}
    first, again, other = (trainer_of(tmp_path, tiny_model("dinov2"), seed=seed, **options) for seed in (1, 1, 2))
    draws = [first.draw_masks(5, (4, 4)) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], again.draw_masks(5, (4, 4)))
    assert not torch.equal(draws[0], other.draw_masks(5, (4, 4)))
    assert not torch.equal(draws[0], first.draw_masks(6, (4, 4)))
    assert draws[0].shape == (2, 4, 16)
    assert all(first.draw_masks(step, (2, 2)).any() for step in range(100))


# what cannot work


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dino_weight": 0.0}, "all weights are 0"),
        ({"ibot_weight": -1.0}, "the weight -1.0 of the loss ibot_weight"),
        ({"dino_local_weight": float("nan")}, "dino_local_weight"),
        ({"targets": "softmax"}, "targets='softmax' must be one of centering, sinkhorn"),
        ({"gram_negatives": "drop"}, "gram_negatives='drop'"),
        ({"koleo_neighbours": 0}, "koleo_neighbours=0"),
    ],
)
def test_objectives_that_cannot_work_are_refused(values, message, tmp_path):
    for refuse in (Objectives, lambda **given: DinoTrainingArguments(tmp_path, **given)):
        with pytest.raises(ValueError, match=message) as raised:
            refuse(**values)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "objectives", "arguments", "message"),
    [
        ("resnet", PATCHES, {}, "resnet50 has no patch tokens, which ibot_weight need"),
        ("convnext", GRAM, {}, "convnext_tiny has no patch tokens, which gram_weight need"),
        ("vit", PATCHES, {}, "vit_tiny has no mask token .*use_mask_token"),
        ("vit", GRAM, {}, "needs a Gram teacher"),
        ("dinov2", PATCHES, {}, "needs masks: pass bool_masked_pos"),
        ("dinov2", PATCHES, {"bool_masked_pos": masks_of(num_patches=9)}, "bool_masked_pos is .* must be"),
        ("dinov2", PATCHES, {"pixel_values": crops_of(sizes=(32, 24))}, "global crops are of different sizes"),
        ("dinov2", Objectives(koleo_weight=1.0, koleo_neighbours=3), {}, "KoLeo of 3 images has no 3 nearest"),
    ],
)
def test_a_model_that_lacks_what_a_loss_needs_is_refused(family, objectives, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        DinoForPreTraining(tiny_config(family))(**{"pixel_values": crops_of(), "objectives": objectives, **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (tiny_config("resnet", head_type=None), "the Gram teacher is a .*, the student a vision transformer: take"),
        (tiny_config("xcit", head_type=None), "take a Gram teacher of the same family"),
        (tiny_config("vit", head_type=None, num_channels=1), "takes 1 channels, the student 3"),
    ],
)
def test_a_gram_teacher_of_another_family_is_refused(source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_model().add_gram_teacher(DinoModel(source))
    DinoModel(source).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path / "run", gram_weight=1.0, gram_teacher=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"koleo_weight": 0.1, "per_device_train_batch_size": 1}, "KoLeo of 1 images has no 1 nearest others"),
        ({"koleo_neighbours": 4, "gradient_accumulation_steps": 2, **OF_TWO}, "KoLeo of 4 images has no 4 nearest"),
        ({"koleo_over_processes": False, "koleo_neighbours": 2, **OF_TWO}, "KoLeo of 2 images has no 2 nearest"),
        ({"clip": "all"}, "clip='all' must be one of parameter, module"),
        ({"freeze_last_layer": "no"}, "freeze_last_layer='no'"),
        ({"layer_decay": 0.0}, "layer_decay=0.0"),
        ({"mask_ratios": [0.5, 0.1]}, r"ratios \(0.5, 0.1\)"),
        ({"mask_ratios": [0.5]}, "mask_ratios="),
        ({"mask_share_of_crops": 1.5}, "the share 1.5 of masked crops"),
        ({"gram_update_steps": -1}, "gram_update_steps=-1"),
        ({"gram_max_updates": 3}, "gram_max_updates=3 must be at least 1, and goes with gram_update_steps"),
        ({"gram_max_updates": 0, "gram_update_steps": 2}, "gram_max_updates=0 must be at least 1"),
        ({"schedules": {"rate": {}}}, "schedules has 'rate', but only learning_rate, "),
        ({"schedules": {"learning_rate": {"start": 0.0}}}, "schedules.learning_rate must have start, peak, end"),
        ({"schedules": {"gram_weight": {"start": 0, "peak": 1, "end": 1}}}, "schedules.gram_weight.start=0 must be"),
        (
            {"schedules": {"teacher_momentum": {"start": 0.9, "peak": 0.9, "end": 2}}},
            "schedules.teacher_momentum.end=2 must be a number from 0 to 1",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        DinoTrainingArguments(str(tmp_path), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("resnet", {"ibot_weight": 1.0}, "resnet50 has no patch tokens"),
        ("vit", {"ibot_weight": 1.0}, "no mask token"),
        ("vit", {"gram_update_steps": 2}, "set gram_weight, too"),
        ("vit", {"gram_weight": 1.0, "gram_update_steps": 2, "gram_teacher": "wide"}, "of another size"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training_begins(family, options, message, tmp_path):
    DinoModel(tiny_config("vit", hidden_size=64, head_type=None)).save_pretrained(tmp_path / "wide")
    options = copy.copy(options)
    if "gram_teacher" in options:
        options["gram_teacher"] = str(tmp_path / options["gram_teacher"])
    with pytest.raises(ValueError, match=message) as raised:
        trainer_of(tmp_path / "run", tiny_model(family), **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("sizes", [(8, 8, 16), (8, 8)])
def test_masks_of_one_patch_are_refused_before_a_step(sizes, tmp_path):
    model = tiny_model("dinov2")
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_of(tmp_path, model, RandomCrops(sizes=sizes), ibot_weight=1.0)
    with pytest.raises(ValueError, match="no block of patches can be masked in an image of 1 x 1 patches"):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not list(Path(tmp_path).glob("checkpoint-*"))


# distillation from a teacher that stays as it is


def larger_teacher(family: str = "dinov2", **overrides) -> DinoModel:
    return DinoModel(tiny_config(family, **{"hidden_size": 64, "num_hidden_layers": 4, **overrides}))


def test_targets_are_those_of_the_distillation_teacher():
    model, source = tiny_model("dinov2").train(), larger_teacher()
    model.add_distillation_teacher(source)
    before = copy.deepcopy(source.state_dict())
    crops = crops_of()
    output = model(crops, bool_masked_pos=masks_of(), objectives=PATCHES)
    assert_close(output.teacher_projection, source.eval()(torch.cat(crops[:2])).projection.detach())
    output.loss.backward()
    with torch.no_grad():
        model.student.backbone.cls_token.add_(1)
    model.update_teacher(0.5)
    assert_close(model.teacher.backbone.cls_token, model.student.backbone.cls_token - 0.5)
    fixed = model.distillation_teacher.state_dict()
    assert all(torch.equal(tensor, fixed[name]) for name, tensor in before.items())


def test_fixed_teachers_keep_the_statistics_of_their_batch_norms():
    model = tiny_model("xcit")
    model.add_gram_teacher()
    model.add_distillation_teacher(larger_teacher("xcit"))
    model.train()
    fixed = [copy.deepcopy(network.state_dict()) for network in (model.gram_teacher, model.distillation_teacher)]
    model(crops_of(), objectives=GRAM)
    for network, before in zip((model.gram_teacher, model.distillation_teacher), fixed):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert model.eval().train().teacher.training


@pytest.mark.slow
def test_a_run_that_distils_is_resumed(tmp_path, messages):
    larger_teacher().save_pretrained(tmp_path / "larger")
    options = {"distillation_teacher": str(tmp_path / "larger"), "save_strategy": "steps", "save_steps": 2}

    def new_trainer(name: str, **given):
        return trainer_of(tmp_path / name, tiny_model("dinov2"), ibot_weight=1.0, **options, **given)

    whole, stopped = new_trainer("whole"), new_trainer("stopped")
    whole.train()
    stopped.add_callback(StopAt(4))
    stopped.train()
    resumed = new_trainer("stopped")
    resumed.train(resume_from_checkpoint=True)
    assert not [message for message in messages() if "missing keys" in message]
    assert not [name for name in load_file(tmp_path / "whole/checkpoint-8/model.safetensors") if "distil" in name]
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert whole.model.patch_center.any()
    saved = DinoModel.from_pretrained(tmp_path / "whole" / "checkpoint-8")
    assert saved.config.hidden_size == 32


@pytest.mark.parametrize(
    ("source", "objectives", "message"),
    [
        (larger_teacher(head_type=None), Objectives(), "the distillation teacher has no head"),
        (larger_teacher(projection_dim=30), Objectives(), "has 30 prototypes, the student 24: set projection_dim=30"),
        (
            larger_teacher(patch_head=True, patch_projection_dim=30),
            PATCHES,
            "has 30 prototypes of patches, the student 24",
        ),
        (larger_teacher(patch_size=16), PATCHES, "patches of 16 pixels, the student of 8"),
        (larger_teacher(num_channels=1), Objectives(), "takes 1 channels, the student 3"),
    ],
)
def test_a_distillation_teacher_that_does_not_fit_is_refused(source, objectives, message, tmp_path):
    source.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        trainer_of(
            tmp_path / "run",
            tiny_model("dinov2"),
            distillation_teacher=str(tmp_path),
            ibot_weight=objectives.ibot_weight,
        )
    assert "\n" not in str(raised.value)
