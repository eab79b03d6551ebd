"""KoLeo: against DINOv2's and DINOv3's own numbers, lightly's, and its definition."""

import pytest
import torch
from golden_data import assert_close, read_golden
from lightly.loss import KoLeoLoss

from modeling_dino.training.losses.koleo import koleo_loss


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_the_originals_loss_and_gradient(family):
    metadata, tensors = read_golden(f"{family}_losses")
    golden = metadata["koleo"]
    neighbours = golden.get("topk") or [1] * golden["cases"]
    for case, num_neighbours in enumerate(neighbours):
        features = tensors[f"koleo.case{case}.input"].requires_grad_()
        loss = koleo_loss(features, num_neighbours)
        loss.backward()
        assert_close(loss.detach().reshape(1), tensors[f"koleo.case{case}.loss"])
        assert_close(features.grad, tensors[f"koleo.case{case}.grad"])


@pytest.mark.parametrize("shape", [(2, 3), (9, 4), (16, 50)])
def test_lightlys_loss_agrees(shape):
    features = torch.randn(shape, requires_grad=True)
    expected, actual = KoLeoLoss()(features), koleo_loss(features)
    assert_close(actual.detach(), expected.detach())
    assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (actual, expected)))


def test_a_case_worked_by_hand():
    """On the circle at 0, 90 and 180 degrees: sqrt(2) to the nearest, and of two nearest sqrt(2) and 2 at the ends."""
    features = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-2.0, 0.0]])
    assert_close(koleo_loss(features), torch.tensor(-0.5).mul(torch.tensor(2.0).log()))
    logs = 4 * 0.5 * torch.tensor(2.0).log() + 2 * torch.tensor(2.0).log()
    assert_close(koleo_loss(features, 2), -logs / 6)


def test_two_opposite_images_are_each_others_nearest():
    assert_close(koleo_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), -torch.tensor(2.0).log())


@pytest.mark.parametrize("num_neighbours", [1, 3])
def test_the_gradient_is_that_of_the_loss(num_neighbours):
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: koleo_loss(x, num_neighbours), features)


def test_equal_images_have_a_finite_loss_and_gradient():
    features = torch.ones(3, 4, requires_grad=True)
    koleo_loss(features).backward()
    assert torch.isfinite(features.grad).all()


def test_float32_whatever_the_autocast():
    features = torch.randn(6, 32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = koleo_loss(features)
    assert torch.equal(actual, koleo_loss(features.float()))


@pytest.mark.parametrize(("num_images", "num_neighbours"), [(1, 1), (3, 3), (4, 0)])
def test_batches_without_neighbours_are_refused(num_images, num_neighbours):
    with pytest.raises(ValueError, match=f"KoLeo of {num_images} images has no {num_neighbours} nearest"):
        koleo_loss(torch.randn(num_images, 4), num_neighbours)
