"""The loss between crops, and the teacher's targets: against DINOv2's and DINOv3's own numbers, and definitions."""

import pytest
import torch
from golden_data import assert_close, read_golden

from modeling_dino.training.loss import dino_loss, pair_shares
from modeling_dino.training.losses.centering import centered_softmax, teacher_probabilities, update_center
from modeling_dino.training.losses.dino import cross_view_entropy, pair_count
from modeling_dino.training.losses.sinkhorn import sinkhorn_knopp


def balanced_by_definition(teacher: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """As the papers write it, in float64."""
    shares = (teacher.double() / temperature).exp().T
    num_prototypes, num_images = shares.shape
    shares = shares / shares.sum()
    for _ in range(iterations):
        shares = shares / shares.sum(1, keepdim=True) / num_prototypes
        shares = shares / shares.sum(0, keepdim=True) / num_images
    return (shares * num_images).T


@pytest.mark.parametrize("way", ["sinkhorn", "centering"])
def test_dinov2s_targets_loss_gradient_and_center(way):
    metadata, tensors = read_golden("dinov2_losses")
    golden = metadata["dino"]
    num_crops = golden["num_global_crops"], golden["num_local_crops"]
    center = torch.zeros(1, golden["out_dim"])
    for step, temperature in enumerate(golden["teacher_temps"]):
        values = {name: tensors[f"dino.step{step}.{name}"] for name in ("student", "teacher", "center_used")}
        expected = {name: tensors[f"dino.step{step}.{way}.{name}"] for name in ("targets", "loss", "student_grad")}
        student, teacher = values["student"].requires_grad_(), values["teacher"]
        if way == "sinkhorn":
            targets = sinkhorn_knopp(teacher, temperature, golden["sinkhorn_iterations"])
        else:
            assert (center - values["center_used"]).abs().max() <= 1e-6
            targets = centered_softmax(teacher, center, temperature)
            update_center(center, teacher, golden["center_momentum"])
        assert_close(targets, expected["targets"])
        targets = targets.unflatten(0, (num_crops[0], -1))
        mean = cross_view_entropy(student, targets, golden["student_temp"], ignore_diagonal=False)
        loss = mean * pair_count(*num_crops, ignore_diagonal=False)  # the original sums over pairs
        loss.backward()
        assert_close(loss.detach().reshape(1), expected["loss"])
        assert_close(student.grad, expected["student_grad"])
    if way == "centering":
        assert_close(center, tensors["dino.center_final"])


@pytest.mark.parametrize("crops", ["global", "local"])
@pytest.mark.parametrize("ignore_diagonal", [False, True])
def test_dinov3s_targets_loss_and_gradient(crops, ignore_diagonal):
    metadata, tensors = read_golden("dinov3_losses")
    golden = metadata["dino"]
    for step, temperature in enumerate(golden["teacher_temps"]):
        prefix = f"dino.step{step}.{crops}."
        case = prefix + "ignore_diagonal." if ignore_diagonal else prefix
        teacher = tensors[f"dino.step{step}.teacher"]
        targets = sinkhorn_knopp(teacher.flatten(0, 1), temperature, golden["sinkhorn_iterations"])
        targets = targets.unflatten(0, teacher.shape[:2])
        assert_close(targets, tensors[f"dino.step{step}.targets"])
        student = tensors[prefix + "student"].clone().requires_grad_()
        loss = cross_view_entropy(student.flatten(0, 1), targets, golden["student_temp"], ignore_diagonal)
        loss.backward()
        assert_close(loss.detach().reshape(1), tensors[case + "loss"])
        assert_close(student.grad, tensors[case + "student_grad"])


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 8), (2, 0), (3, 2), (1, 4)])
def test_global_and_local_losses_by_their_shares_are_the_loss_of_all_crops(num_global, num_local):
    images, prototypes = 3, 13
    student = torch.randn((num_global + num_local) * images, prototypes)
    teacher, center = torch.randn(num_global * images, prototypes), torch.randn(1, prototypes)
    targets = teacher_probabilities(teacher, center, 0.04, num_global)
    of_global, of_local = pair_shares(num_global, num_local)
    joined = torch.zeros(())
    if of_global:
        joined = joined + of_global * cross_view_entropy(student[: num_global * images], targets, 0.1)
    if of_local:
        joined = joined + of_local * cross_view_entropy(student[num_global * images :], targets, 0.1, False)
    assert_close(joined, dino_loss(student, teacher, center, num_global_crops=num_global))


def test_shares_of_pairs():
    assert pair_shares(2, 8) == pytest.approx((2 / 18, 16 / 18))
    assert pair_shares(2, 8, ignore_diagonal=False) == pytest.approx((4 / 20, 16 / 20))
    with pytest.raises(ValueError, match="1 global and 0 local crops make no pair"):
        pair_shares(1, 0)


@pytest.mark.parametrize("ignore_diagonal", [False, True])
def test_the_gradient_is_that_of_the_loss(ignore_diagonal):
    student = torch.randn(3 * 2, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 2, 5, dtype=torch.float64).softmax(-1)
    assert torch.autograd.gradcheck(lambda x: cross_view_entropy(x, targets, 0.3, ignore_diagonal), student)


def test_one_local_crop_is_enough_where_all_pairs_count():
    targets = torch.full((2, 3, 4), 0.25)
    loss = cross_view_entropy(torch.zeros(3, 4), targets, 0.1, ignore_diagonal=False)
    assert_close(loss, torch.tensor(4.0).log())
    with pytest.raises(ValueError, match="at least 2 crops of 3 images"):
        cross_view_entropy(torch.zeros(3, 4), targets, 0.1)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("shape", [(6, 4), (3, 20), (1, 5), (2, 20000)])
def test_sinkhorn_by_its_definition(iterations, shape):
    teacher = torch.randn(shape)
    expected = balanced_by_definition(teacher, 0.3, iterations).float()
    assert_close(sinkhorn_knopp(teacher, 0.3, iterations), expected)


def test_sinkhorn_of_a_case_worked_by_hand():
    """exp gives ((3, 1), (1, 1)), an image a row; the prototypes' sums are 4 and 2, then the images' 5/4 and 3/4."""
    teacher = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    assert_close(sinkhorn_knopp(teacher, 1.0, 1), torch.tensor([[0.6, 0.4], [1 / 3, 2 / 3]]))


def test_many_rounds_of_sinkhorn_give_every_prototype_the_same_share():
    targets = sinkhorn_knopp(torch.randn(12, 4), 0.5, 100)
    assert_close(targets.sum(0), torch.full((4,), 3.0))
    assert_close(targets.sum(1), torch.ones(12))


def test_sinkhorn_of_microbatches_is_another_than_of_the_batch():
    """So the outputs of all must come together, as its documentation says."""
    teacher = torch.randn(8, 5)
    in_parts = torch.cat([sinkhorn_knopp(part, 0.3) for part in teacher.chunk(2)])
    assert (in_parts - sinkhorn_knopp(teacher, 0.3)).abs().max() > 0.01


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_sinkhorn_of_logits_too_large_for_exp(scale):
    teacher = torch.randn(6, 5) * scale
    targets = sinkhorn_knopp(teacher, 0.04)
    assert torch.isfinite(targets).all()
    assert_close(targets.sum(1), torch.ones(6))


def test_a_constant_added_to_all_logits_changes_nothing():
    teacher = torch.randn(6, 5)
    assert_close(sinkhorn_knopp(teacher + 100, 0.5), sinkhorn_knopp(teacher, 0.5), tolerance=1e-4)  # 100 is rounded


def test_sinkhorn_leaves_its_input_and_computes_in_float32_whatever_the_autocast():
    teacher = torch.randn(6, 5).bfloat16().requires_grad_()
    before = teacher.detach().clone()
    expected = sinkhorn_knopp(teacher.float(), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = sinkhorn_knopp(teacher, 0.1)
    assert torch.equal(actual, expected)
    assert not actual.requires_grad
    assert torch.equal(teacher, before)


def test_sinkhorn_leaves_an_input_in_float32():
    teacher = torch.randn(6, 5)
    before = teacher.clone()
    sinkhorn_knopp(teacher, 1.0)
    assert torch.equal(teacher, before)


def test_sinkhorn_without_iterations_is_refused():
    with pytest.raises(ValueError, match="iterations=0 of Sinkhorn-Knopp must be at least 1"):
        sinkhorn_knopp(torch.randn(2, 3), 0.1, 0)


def test_small_gradients_of_float16_are_kept_until_the_scale_multiplies_them():
    batch_size, prototypes, scale = 256, 2048, 2.0**16
    student = torch.randn(3 * batch_size, prototypes).div(100).half()
    targets = torch.randn(2, batch_size, prototypes).softmax(-1)
    gradients = []
    for values in (student.clone(), student.float()):
        (cross_view_entropy(values.requires_grad_(), targets, 0.1) * scale).backward()
        gradients.append(values.grad.float())
    assert gradients[0].dtype == gradients[1].dtype == torch.float32
    assert_close(*gradients, tolerance=1e-3)
