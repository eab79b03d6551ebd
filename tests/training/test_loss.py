import pytest
import torch
from golden_data import assert_close, read_golden
from lightly.loss import DINOLoss

from modeling_dino.training.loss import dino_loss, weighted_sum
from modeling_dino.training.losses import cross_entropy
from modeling_dino.training.losses.centering import teacher_probabilities, update_center
from modeling_dino.training.losses.cross_entropy import mean_entropy
from modeling_dino.training.losses.dino import cross_view_entropy
from modeling_dino.training.schedules import linear_warmup


def loss_by_definition(student, teacher, center, student_temperature, teacher_temperature, num_global_crops):
    """All pairs, as the paper writes them."""
    targets = ((teacher - center) / teacher_temperature).softmax(-1).chunk(num_global_crops)
    logs = (student / student_temperature).log_softmax(-1).chunk(len(student) // len(targets[0]))
    pairs = [-(p * q).sum(-1).mean() for t, p in enumerate(targets) for s, q in enumerate(logs) if s != t]
    return sum(pairs) / len(pairs)


def test_the_originals_loss_gradient_and_center():
    metadata, tensors = read_golden("loss")
    golden = metadata["loss"]
    center = torch.zeros(1, golden["out_dim"])
    temperatures = (golden["warmup_teacher_temp"], golden["teacher_temp"], golden["warmup_teacher_temp_epochs"])
    for step in range(golden["steps"]):
        student = tensors[f"step{step}.student"].requires_grad_()
        teacher = tensors[f"step{step}.teacher"]
        loss = dino_loss(
            student,
            teacher,
            center,
            student_temperature=golden["student_temp"],
            teacher_temperature=linear_warmup(step, *temperatures),
            num_global_crops=golden["num_global_crops"],
        )
        loss.backward()
        assert_close(loss.detach().reshape(1), tensors[f"step{step}.loss"])
        assert_close(student.grad, tensors[f"step{step}.student_grad"])
        update_center(center, teacher, golden["center_momentum"])
        assert_close(center, tensors[f"step{step}.center_after"])


@pytest.mark.parametrize(("num_global_crops", "num_crops"), [(1, 2), (2, 2), (2, 10), (3, 5)])
def test_any_number_of_crops(num_global_crops, num_crops):
    student = torch.randn(num_crops * 3, 17, dtype=torch.float64).float().requires_grad_()
    teacher, center = torch.randn(num_global_crops * 3, 17), torch.randn(1, 17)
    options = {"student_temperature": 0.2, "teacher_temperature": 0.07, "num_global_crops": num_global_crops}
    expected = loss_by_definition(student, teacher, center, **options)
    expected_gradient = torch.autograd.grad(expected, student)[0]
    actual = dino_loss(student, teacher, center, **options)
    assert_close(actual.detach(), expected.detach())
    assert_close(torch.autograd.grad(actual, student)[0], expected_gradient)


def test_the_center_and_the_inputs_are_left_as_they_are():
    student, teacher, center = torch.randn(8, 5), torch.randn(4, 5, requires_grad=True), torch.randn(1, 5)
    before = [x.clone() for x in (student, teacher, center)]
    assert not dino_loss(student, teacher, center).requires_grad  # nothing goes to the teacher
    assert all(torch.equal(x, y) for x, y in zip((student, teacher, center), before))


def test_float32_whatever_the_autocast():
    student, teacher = torch.randn(8, 50).bfloat16(), torch.randn(4, 50).bfloat16()
    center = torch.randn(1, 50)
    expected = dino_loss(student.float(), teacher.float(), center)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = dino_loss(student, teacher, center)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_of_the_probabilities_only_the_gradient_is_kept():
    crops, images, prototypes = 10, 4, 512
    sizes = []
    student = torch.randn(crops * images, prototypes, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        dino_loss(student, torch.randn(2 * images, prototypes), torch.zeros(1, prototypes))
    assert sum(sizes) == crops * images * prototypes  # the pairs would be 17 times 2


@pytest.mark.parametrize(
    ("student", "teacher", "num_global_crops"), [(7, 4, 2), (2, 4, 2), (4, 3, 2), (2, 2, 1), (4, 4, 0)]
)
def test_crops_that_do_not_fit_are_refused(student, teacher, num_global_crops):
    with pytest.raises(ValueError, match="crops"):
        dino_loss(
            torch.randn(student, 3), torch.randn(teacher, 3), torch.zeros(1, 3), num_global_crops=num_global_crops
        )


def test_sums_of_microbatches_move_the_center_as_the_batch_would():
    teacher, center = torch.randn(12, 7), torch.randn(1, 7)
    at_once, in_parts = center.clone(), center.clone()
    update_center(at_once, teacher, 0.9)
    update_center(in_parts, sum(part.sum(0, keepdim=True) for part in teacher.chunk(3)), 0.9, count=12)
    assert_close(in_parts, at_once)
    assert_close(at_once, 0.9 * center + 0.1 * teacher.mean(0))


def test_the_loss_is_the_teachers_entropy_and_the_divergence_from_it():
    teacher = torch.randn(2, 7)  # one image
    targets = teacher_probabilities(teacher, torch.zeros(1, 7), 0.5)
    loss = cross_view_entropy(teacher, targets, 0.5)
    p, q = targets[:, 0]
    divergence = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    assert_close(loss - mean_entropy(targets), divergence)
    assert mean_entropy(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])) == pytest.approx(0.5 * torch.tensor(2).log())


@pytest.mark.parametrize("elements", [1, 2 * 6, 2**20])
def test_entropy_in_parts_is_torchs(monkeypatch, elements):
    monkeypatch.setattr(cross_entropy, "ELEMENTS_ON_CPU", elements)
    probabilities = (100 * torch.randn(2, 3, 6)).softmax(-1)  # some of them are 0
    assert_close(mean_entropy(probabilities), torch.special.entr(probabilities).sum(-1).mean())


def test_lightlys_loss_agrees():
    reference = DINOLoss(output_dim=33, teacher_temp=0.05, student_temp=0.1, center_momentum=0.8)
    center = torch.zeros(1, 33)
    for _ in range(4):
        student, teacher = torch.randn(6 * 3, 33, requires_grad=True), torch.randn(2 * 3, 33)
        expected = reference(teacher.chunk(2), student.chunk(6), teacher_temp=0.05)
        actual = dino_loss(student, teacher, center, teacher_temperature=0.05)
        assert_close(actual.detach(), expected.detach())
        assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (actual, expected)))
        update_center(center, teacher, 0.8)
        assert_close(center, reference.center[0])


def test_a_weighted_sum_of_losses():
    losses = {"dino": torch.tensor(2.0, requires_grad=True), "ibot": torch.tensor(3.0), "koleo": torch.tensor(5.0)}
    total = weighted_sum(losses, {"dino": 1.0, "koleo": 0.1, "gram": 0.0})
    assert_close(total.detach(), torch.tensor(2.5))
    assert torch.autograd.grad(total, losses["dino"])[0] == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"dino": 0.0, "ibot": 0}, r"all weights are 0 \(dino, ibot\)"),
        ({}, r"all weights are 0 \(there are none\)"),
        ({"dino": -1.0}, "the weight -1.0 of the loss dino must be a finite number of at least 0"),
        ({"dino": float("nan")}, "the weight nan of the loss dino"),
        ({"dino": 1.0, "gram": 1.0}, "there is no loss gram: there are dino"),
    ],
)
def test_weights_that_cannot_work_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_sum({"dino": torch.ones(())}, weights)
