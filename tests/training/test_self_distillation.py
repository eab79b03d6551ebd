import copy
import json

import pytest
import torch
from golden_data import GOLDEN_DIR, assert_close, read_golden, with_prefix
from lightly.loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from tiny_models import shallow_config, tiny_config
from transformers import AutoModel, AutoModelForPreTraining

from conversion_scripts.convert import convert_checkpoint
from conversion_scripts.options import ConvertOptions
from conversion_scripts.recognition import to_dino
from modeling_dino import DinoBackbone, DinoForImageClassification, DinoForPreTraining, DinoModel
from modeling_dino.configuration_dino import DinoConfig
from modeling_dino.training.loss import dino_loss
from modeling_dino.training.views import pool_crops


def crops_of(num_images: int = 3, sizes=(32, 32, 16, 24, 16)) -> list[torch.Tensor]:
    return [torch.randn(num_images, 3, size, size) for size in sizes]


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(a: torch.nn.Module, b: torch.nn.Module):
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def trained(family) -> DinoForPreTraining:
    """One whose teacher, student and center all differ."""
    model = DinoForPreTraining(tiny_config(family, drop_path_rate=0.2, head_use_bn=True))
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.update_teacher(0.5)
    model.center.normal_()
    return model


def test_it_starts_with_equal_networks_of_which_one_is_frozen(family):
    model = DinoForPreTraining(tiny_config(family))
    assert_same_state(model.student, model.teacher)
    assert {p.data_ptr() for p in model.student.parameters()}.isdisjoint(
        p.data_ptr() for p in model.teacher.parameters()
    )
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert all(p.requires_grad for p in model.student.parameters())
    assert not model.center.any()
    assert model.center.shape == (1, model.config.projection_dim)


@pytest.mark.slow
def test_crops_of_all_sizes_are_projected_in_their_order(family):
    network = DinoModel(tiny_config(family)).eval()
    crops = crops_of()
    with torch.no_grad():
        expected = torch.cat([network(crop).projection for crop in crops])
        assert_close(network.head(torch.cat(pool_crops(network, crops, 2))), expected)


def test_crops_of_one_size_are_one_batch_for_batch_norm():
    network = DinoModel(tiny_config("resnet", head_use_bn=True))
    crops = crops_of(sizes=(32, 16, 32, 16))
    in_order = network.head(
        torch.cat(
            [network.backbone.pool(network.backbone(torch.cat(crops[i::2]))).unflatten(0, (2, 3)) for i in (0, 1)], 1
        )
        .reshape(2, 2, 3, -1)
        .flatten(0, 2)
    )
    assert_close(network.head(torch.cat(pool_crops(network, crops, 2))).detach(), in_order.detach())


def test_forward_changes_neither_teacher_nor_center(trained):
    before = state_of(trained)
    output = trained.train()(crops_of())
    output.loss.backward()
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in changed)
    assert all(p.grad is not None for p in trained.student.parameters())
    assert all(p.grad is None for p in trained.teacher.parameters())
    assert output.student_projection.shape == (5 * 3, 24)
    assert output.teacher_projection.shape == (2 * 3, 24)


def test_in_train_mode_the_teachers_batch_norms_go_by_the_batch():
    model = DinoForPreTraining(tiny_config("resnet")).train()
    model(crops_of())
    assert model.teacher.backbone.bn1.num_batches_tracked == 1  # two global crops, one batch
    assert model.student.backbone.bn1.num_batches_tracked == 3  # one a size
    statistics = model.teacher.backbone.bn1.running_mean.clone()
    model.update_teacher(0.0)
    assert_close(model.teacher.backbone.conv1.weight, model.student.backbone.conv1.weight)
    assert torch.equal(model.teacher.backbone.bn1.running_mean, statistics)


def test_dropout_and_drop_path_are_the_students_alone():
    config = tiny_config(drop_path_rate=0.5, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    model, crops = DinoForPreTraining(config).train(), crops_of()
    first, second = model(crops), model(crops)
    assert torch.equal(first.teacher_projection, second.teacher_projection)
    assert not torch.equal(first.student_projection, second.student_projection)


def test_teacher_and_center_move_when_told(trained):
    before = copy.deepcopy(trained)
    trained.update_teacher(momentum=0.75)
    for name, parameter in trained.teacher.named_parameters():
        student, teacher = (dict(network.named_parameters())[name] for network in (before.student, before.teacher))
        assert_close(parameter, 0.75 * teacher + 0.25 * student)
    outputs = torch.randn(6, 24)
    trained.update_center(outputs, momentum=0.8)
    assert_close(trained.center, 0.8 * before.center + 0.2 * outputs.mean(0))
    assert_same_state(trained.student, before.student)
    trained.update_teacher(momentum=1.0)


def test_what_the_diagnosis_needs():
    model, crops = DinoForPreTraining(tiny_config()).eval(), crops_of(num_images=4)
    output = model(crops, teacher_temperature=0.02)
    probabilities = (output.teacher_projection / 0.02).softmax(-1)
    entropies = -(probabilities * probabilities.log()).sum(-1)
    assert_close(output.teacher_entropy, entropies.mean())
    assert_close(output.kl_divergence, (output.loss - entropies.mean()).detach())
    mean = probabilities.mean(0)
    assert_close(output.image_information, -(mean * mean.log()).sum() - entropies.mean())
    same = model([crop[:1].expand(4, -1, -1, -1) for crop in [crops[0], crops[0]]])
    assert abs(same.image_information) < 1e-5


def test_temperatures_and_number_of_global_crops_are_those_of_the_loss():
    model, crops = DinoForPreTraining(tiny_config()).eval(), crops_of()
    options = {"student_temperature": 0.3, "teacher_temperature": 0.2, "num_global_crops": 3}
    model.center.normal_()
    output = model(crops, **options)
    expected = dino_loss(output.student_projection, output.teacher_projection, model.center, **options)
    assert_close(output.loss.detach(), expected.detach())
    assert len(output.teacher_projection) == 3 * 3


@pytest.mark.parametrize(
    ("crops", "arguments", "message"),
    [
        (None, {}, "must be a list of crops"),
        (torch.randn(2, 3, 32, 32), {}, "must be a list of crops"),
        (crops_of()[:1], {}, "at least two crops"),
        (crops_of(), {"num_global_crops": 6}, "num_global_crops=6"),
        ([*crops_of(3), *crops_of(2)], {}, "different numbers of images"),
        ([torch.randn(2, 1, 32, 32)] * 2, {}, "1 channels"),
        ([torch.randn(2, 3, 32, 32), torch.randn(2, 3, 4, 4)], {}, "smaller than a patch"),
    ],
)
def test_crops_that_do_not_fit_are_refused(crops, arguments, message):
    with pytest.raises(ValueError, match=message):
        DinoForPreTraining(tiny_config())(crops, **arguments)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="head_type"):
        DinoForPreTraining(tiny_config(head_type=None))


@pytest.mark.slow
def test_saving_keeps_student_teacher_and_center(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is DinoForPreTraining
    assert_same_state(loaded, trained)
    assert not any(p.requires_grad for p in loaded.teacher.parameters())
    assert all(p.requires_grad for p in loaded.student.parameters())
    trained.eval(), loaded.eval()
    crops = crops_of()
    assert torch.equal(loaded(crops).loss, trained(crops).loss)


def test_a_network_of_what_pretraining_saved(trained, tmp_path, messages):
    trained.save_pretrained(tmp_path / "run")
    for which, network in ((None, trained.teacher), ("teacher", trained.teacher), ("student", trained.student)):
        model, report = DinoModel.from_pretrained(tmp_path / "run", which=which, output_loading_info=True)
        assert_same_state(model, network)
        assert not any(report.values()), report
        model.save_pretrained(tmp_path / f"{which}")  # as a single model, in our names
        assert_same_state(DinoModel.from_pretrained(tmp_path / f"{which}"), network)
    assert_same_state(AutoModel.from_pretrained(tmp_path / "run"), trained.teacher)
    assert_same_state(DinoBackbone.from_pretrained(tmp_path / "run").backbone, trained.teacher.backbone)
    assert not messages()
    classifier = DinoForImageClassification.from_pretrained(tmp_path / "run", which="student")
    assert_same_state(classifier.backbone, trained.student.backbone)


@pytest.mark.parametrize("saved", ["model", "teacher", "student"])
@pytest.mark.parametrize("model_class", [DinoModel, DinoBackbone, DinoForImageClassification])
def test_a_head_that_is_not_wanted_is_left_out_without_a_report(model_class, saved, trained, tmp_path, messages):
    network = trained.student if saved == "student" else trained.teacher
    (network if saved == "model" else trained).save_pretrained(tmp_path)
    arguments = {"which": None if saved == "model" else saved, "output_loading_info": True}
    arguments |= {"head_type": None} if model_class is DinoModel else {}
    model, report = model_class.from_pretrained(tmp_path, **arguments)
    assert_same_state(model.backbone, network.backbone)
    assert model.config.head_type is None
    assert not report["unexpected_keys"]
    assert "UNEXPECTED" not in "".join(messages())


def test_what_else_is_unexpected_is_reported(trained, messages):
    state_dict = {**trained.teacher.state_dict(), "surplus": torch.zeros(1)}
    config = copy.deepcopy(trained.config)
    config.head_type = None
    _, report = DinoModel.from_pretrained(None, config=config, state_dict=state_dict, output_loading_info=True)
    assert report["unexpected_keys"] == {"surplus"}
    assert "surplus" in "".join(messages())


def test_a_network_that_is_not_there_is_refused(tmp_path):
    DinoModel(tiny_config()).save_pretrained(tmp_path)
    for which, message in (("student", "only a single network"), ("both", "unknown network")):
        with pytest.raises(ValueError, match=message):
            DinoModel.from_pretrained(tmp_path, which=which)


@pytest.mark.parametrize("head_type", ["dino", "simple", None])
def test_pretraining_goes_on_from_any_model(family, head_type, tmp_path):
    model = DinoModel(tiny_config(family, head_type=head_type))
    model.save_pretrained(tmp_path)
    pretraining = DinoForPreTraining.from_pretrained(tmp_path, drop_path_rate=0.1)
    assert pretraining.config.head_type == (head_type or "dino")
    assert pretraining.config.drop_path_rate == 0.1
    assert_same_state(pretraining.student.backbone, model.backbone)
    assert_same_state(pretraining.student, pretraining.teacher)
    assert head_type is None or torch.equal(pretraining.student.head.mlp[0].weight, model.head.mlp[0].weight)
    assert not any(p.requires_grad for p in pretraining.teacher.parameters())
    assert torch.isfinite(pretraining(crops_of()).loss)


def test_overrides_that_do_not_fit_the_weights_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        DinoForPreTraining.from_model(DinoModel(tiny_config()), projection_dim=99)


def test_a_run_of_the_original_goes_on_from_its_center(tmp_path):
    metadata, _ = read_golden("training")
    heads = metadata["vit"]["num_attention_heads"]
    source = str(GOLDEN_DIR / "full_checkpoint.pth")
    convert_checkpoint(ConvertOptions(source=source, output=str(tmp_path / "both"), which="both", num_heads=heads))
    convert_checkpoint(ConvertOptions(source=source, output=str(tmp_path / "teacher"), num_heads=heads))
    both, teacher = (DinoForPreTraining.from_pretrained(tmp_path / name) for name in ("both", "teacher"))
    networks = {which: to_dino(source, which, heads).build_model() for which in ("student", "teacher")}
    center = torch.load(source, weights_only=False)["dino_loss"]["center"]
    assert center.any()
    assert_same_state(both.student, networks["student"])
    assert_same_state(both.teacher, networks["teacher"])
    assert_same_state(teacher.student, networks["teacher"])
    assert torch.equal(both.center, center)
    assert torch.equal(teacher.center, center)
    assert_same_state(DinoModel.from_pretrained(tmp_path / "both"), networks["teacher"])
    exported = ConvertOptions(
        source=str(tmp_path / "both"), output=str(tmp_path / "exported.pth"), to="original", which="student"
    )
    assert convert_checkpoint(exported).lines
    assert_same_state(to_dino(str(tmp_path / "exported.pth"), num_heads=heads).build_model(), networks["student"])


def test_one_step_of_the_originals_training():
    metadata, tensors = read_golden("training")
    head, training = metadata["head"], metadata["training"]
    config = DinoConfig(
        **metadata["vit"],
        backbone="vit_tiny",
        projection_dim=head["out_dim"],
        head_hidden_dim=head["hidden_dim"],
        head_bottleneck_dim=head["bottleneck_dim"],
        head_num_layers=head["nlayers"],
        head_use_bn=head["use_bn"],
        norm_last_layer=head["norm_last_layer"],
    )
    model = DinoForPreTraining(config)
    model.student.load_state_dict(with_prefix(tensors, "student_init."))
    model.update_teacher(0.0)
    count = training["num_global_crops"] + training["num_local_crops"]
    output = model(
        [tensors[f"step0.crop{i}"] for i in range(count)],
        num_global_crops=training["num_global_crops"],
        student_temperature=training["student_temp"],
        teacher_temperature=training["warmup_teacher_temp"],
    )
    assert_close(output.loss.detach().reshape(1), tensors["step0.loss"])
    model.update_center(output.teacher_projection, training["center_momentum"])
    assert_close(model.center, tensors["step0.center_after"])


@pytest.mark.slow
def test_trained_with_lightlys_head_and_loss_the_losses_agree():
    """Its loss moves its center in `forward`, after the loss; its head has no option for the number of layers."""
    config = tiny_config(norm_last_layer=False)
    model = DinoForPreTraining(config)
    networks = []
    for network in (model.student, model.teacher):
        head = DINOProjectionHead(config.hidden_size, 20, 12, 24, norm_last_layer=False)
        head.load_state_dict(
            {name.replace("mlp.", "layers."): tensor for name, tensor in network.head.state_dict().items()}
        )
        networks.append((copy.deepcopy(network.backbone), head))
    student, teacher = (torch.nn.ModuleList(network) for network in networks)
    criterion = DINOLoss(output_dim=24, teacher_temp=0.05, center_momentum=0.9)
    ours = torch.optim.SGD(model.student.parameters(), lr=0.1)
    theirs = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(5):
        crops = crops_of()
        output = model(crops, teacher_temperature=0.05)
        output.loss.backward()
        ours.step()
        ours.zero_grad()
        model.update_center(output.teacher_projection, 0.9)
        model.update_teacher(0.9)

        with torch.no_grad():
            targets = [teacher[1](teacher[0].pool(teacher[0](crop))) for crop in crops[:2]]
        loss = criterion(targets, [student[1](student[0].pool(student[0](crop))) for crop in crops], teacher_temp=0.05)
        loss.backward()
        theirs.step()
        theirs.zero_grad()
        with torch.no_grad():
            for mine, its in zip(teacher.parameters(), student.parameters()):
                mine.mul_(0.9).add_(0.1 * its)
        assert_close(output.loss.detach(), loss.detach(), tolerance=1e-4)
        assert_close(model.center, criterion.center[0], tolerance=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(family):
    model, crops = DinoForPreTraining(tiny_config(family)).train(), crops_of()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for network in (model, checkpointed):
        network(crops).loss.backward()
    for (name, a), b in zip(model.student.named_parameters(), checkpointed.student.parameters()):
        if "qkv.bias" not in name:
            assert_close(b.grad, a.grad, tolerance=1e-4)
    assert_same_state(model, checkpointed)


def test_bfloat16_autocast_keeps_the_loss_in_float32():
    model, crops = DinoForPreTraining(tiny_config()), crops_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(crops)
    assert output.student_projection.dtype == torch.bfloat16
    assert output.loss.dtype == output.teacher_entropy.dtype == torch.float32
    output.loss.backward()


@pytest.mark.slow
def test_one_graph_under_compile(family):
    torch._dynamo.reset()
    model, crops = DinoForPreTraining(shallow_config(family)).train(), crops_of()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    expected, actual = model(crops), compiled(crops)
    assert_close(actual.loss.detach(), expected.loss.detach(), tolerance=1e-4)
    actual.loss.backward()


def test_the_config_of_a_run_is_that_of_its_networks(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DinoForPreTraining"]
    assert config["drop_path_rate"] == 0.2
