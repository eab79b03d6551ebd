"""The patch loss: against DINOv2's and DINOv3's own numbers, lightly's, and its definition."""

import pytest
import torch
from golden_data import assert_close, read_golden
from lightly.loss import IBOTPatchLoss

from modeling_dino.training.losses import cross_entropy
from modeling_dino.training.losses.centering import centered_softmax, update_center
from modeling_dino.training.losses.ibot import ibot_loss, masked_tokens
from modeling_dino.training.losses.sinkhorn import sinkhorn_knopp
from modeling_dino.training.masking import mask_batch


def loss_by_definition(student, targets, masks, temperature):
    """Of all patches (N, P, K), as the paper writes it."""
    entropies = -(targets * (student / temperature).log_softmax(-1)).sum(-1)
    return torch.stack([entropy[mask].mean() for entropy, mask in zip(entropies, masks) if mask.any()]).sum() / len(
        masks
    )


@pytest.mark.parametrize("way", ["sinkhorn", "centering"])
def test_dinov2s_targets_loss_gradient_and_center(way):
    metadata, tensors = read_golden("dinov2_losses")
    golden = metadata["ibot"]
    center = torch.zeros(1, golden["out_dim"])
    for step, temperature in enumerate(golden["teacher_temps"]):
        names = ("student", "teacher", "center_used", "masks", "masks_weight")
        student, teacher, center_used, masks, weights = (tensors[f"ibot.step{step}.{name}"] for name in names)
        masked = mask_batch(masks)
        assert_close(masked.weights, weights)
        student = student.clone().requires_grad_()
        teacher = masked_tokens(teacher, masked.indices)
        if way == "sinkhorn":
            targets = sinkhorn_knopp(teacher, temperature, golden["sinkhorn_iterations"])
        else:
            assert (center - center_used[0]).abs().max() <= 1e-6
            targets = centered_softmax(teacher, center, temperature)
            update_center(center, teacher, golden["center_momentum"])
        assert_close(targets, tensors[f"ibot.step{step}.{way}.targets"])
        own = masked_tokens(student, masked.indices)
        loss = ibot_loss(own, targets, masked.weights, golden["num_crops"], golden["student_temp"])
        loss.backward()
        for name in ("loss", "loss_unmasked_form"):
            assert_close(loss.detach().reshape(1), tensors[f"ibot.step{step}.{way}.{name}"])
        assert_close(student.grad, tensors[f"ibot.step{step}.{way}.student_grad"])
    if way == "centering":
        assert_close(center, tensors["ibot.center_final"][0])


def test_dinov3s_targets_loss_and_gradient():
    metadata, tensors = read_golden("dinov3_losses")
    golden = metadata["ibot"]
    for step, temperature in enumerate(golden["teacher_temps"]):
        names = ("student", "teacher", "masks", "masks_weight", "targets", "loss", "student_grad")
        student, teacher, masks, weights, *expected = (tensors[f"ibot.step{step}.{name}"] for name in names)
        masked = mask_batch(masks)
        assert_close(masked.weights, weights)
        student = student.clone().requires_grad_()
        targets = sinkhorn_knopp(teacher, temperature, golden["sinkhorn_iterations"])
        loss = ibot_loss(student, targets, masked.weights, len(masks), golden["student_temp"])
        loss.backward()
        for actual, wanted in zip((targets, loss.detach().reshape(1), student.grad), expected):
            assert_close(actual, wanted)


def test_lightlys_loss_agrees():
    reference = IBOTPatchLoss(output_dim=9, teacher_temp=0.05, student_temp=0.1, center_momentum=0.8)
    center = torch.zeros(1, 9)
    for _ in range(3):
        masks = torch.rand(4, 3, 5) < 0.4
        masks[0] = False
        masked = mask_batch(masks.flatten(1))
        student, teacher = (torch.randn(int(masks.sum()), 9, requires_grad=True) for _ in range(2))
        expected = reference(teacher.detach(), student, masks)
        actual = ibot_loss(student, centered_softmax(teacher, center, 0.05), masked.weights, len(masks))
        assert_close(actual.detach(), expected.detach())
        assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (actual, expected)))
        update_center(center, teacher, 0.8)
        assert_close(center, reference.center.value)


@pytest.mark.parametrize("elements", [1, 4 * 6, 2**20])
def test_rows_computed_in_parts_are_the_whole(monkeypatch, elements):
    monkeypatch.setattr(cross_entropy, "ELEMENTS_ON_CPU", elements)
    masks = torch.rand(3, 7) < 0.7
    masks[1] = False
    masks[0, 0] = True
    masked = mask_batch(masks)
    student, targets = torch.randn(3, 7, 6, requires_grad=True), torch.randn(3, 7, 6).softmax(-1)
    expected = loss_by_definition(student, targets, masks, 0.2)
    expected_gradient = torch.autograd.grad(expected, student)[0]
    parts = (masked_tokens(values, masked.indices) for values in (student, targets))
    actual = ibot_loss(*parts, masked.weights, len(masks), temperature=0.2)
    assert_close(actual.detach(), expected.detach())
    assert_close(torch.autograd.grad(actual, student)[0], expected_gradient)


def test_the_mean_over_microbatches_is_the_loss_of_the_batch():
    masks = torch.rand(6, 8) < 0.5
    masks[:, 0] = True
    student, targets = torch.randn(6, 8, 5), torch.randn(6, 8, 5).softmax(-1)

    def loss_of(images: slice) -> torch.Tensor:
        masked = mask_batch(masks[images])
        parts = (masked_tokens(values[images], masked.indices) for values in (student, targets))
        return ibot_loss(*parts, masked.weights, len(masks[images]))

    microbatches = [loss_of(slice(start, start + 2)) for start in (0, 2, 4)]
    assert_close(sum(microbatches) / 3, loss_of(slice(None)))


def test_a_case_worked_by_hand():
    """Two crops, of which one is masked at two patches; equal logits say log 4 nats of any target."""
    loss = ibot_loss(torch.zeros(2, 4), torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]), torch.full((2,), 0.5), 2)
    assert_close(loss, torch.tensor(4.0).log() / 2)


def test_the_gradient_is_that_of_the_loss():
    student = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randn(5, 4, dtype=torch.float64).softmax(-1), torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ibot_loss(x, targets, weights, 3, 0.3), student)


def test_of_the_probabilities_only_the_gradient_is_kept():
    sizes = []
    student = torch.randn(20, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        ibot_loss(student, torch.rand(20, 64), torch.ones(20), 4)
    assert sum(sizes) == student.numel()


def test_float32_whatever_the_autocast_and_no_gradient_to_the_teacher():
    student = torch.randn(6, 5).bfloat16().requires_grad_()
    targets = torch.randn(6, 5).softmax(-1).requires_grad_()
    expected = ibot_loss(student.float(), targets, torch.ones(6), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = ibot_loss(student, targets, torch.ones(6), 2)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)
    actual.backward()
    assert targets.grad is None
    assert student.grad.dtype == torch.bfloat16


def test_under_no_grad_there_is_no_gradient():
    with torch.no_grad():
        assert not ibot_loss(torch.randn(2, 3, requires_grad=True), torch.rand(2, 3), torch.ones(2), 1).requires_grad


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="needs patch tokens"):
        masked_tokens(torch.randn(4, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match="needs patch tokens"):
        masked_tokens(torch.randn(4, 0, 8), torch.tensor([], dtype=torch.long))
    with pytest.raises(ValueError, match="no patch is masked"):
        ibot_loss(torch.randn(0, 8), torch.randn(0, 8), torch.ones(0), 4)
    with pytest.raises(ValueError, match="2 outputs of the student, 3 targets and 2 weights"):
        ibot_loss(torch.randn(2, 8), torch.randn(3, 8), torch.ones(2), 4)
