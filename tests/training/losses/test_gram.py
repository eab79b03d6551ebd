"""Gram anchoring: against DINOv3's own numbers, and its definition."""

import pytest
import torch
from golden_data import assert_close, read_golden

from modeling_dino.training.losses.gram import gram_loss, resize_patches


def negatives_of(arguments: dict) -> str:
    """Our word for the original's two arguments."""
    if arguments["remove_neg"]:
        return "remove"
    return "remove_teacher" if arguments["remove_only_teacher_neg"] else "keep"


@pytest.mark.parametrize("level", ["image", "batch"])
def test_dinov3s_loss_and_gradient(level):
    metadata, tensors = read_golden("dinov3_losses")
    for name, arguments in metadata["gram"].items():
        student = tensors["gram.student"].clone().requires_grad_()
        loss = gram_loss(
            student,
            tensors["gram.teacher"],
            per_image=level == "image",
            normalize=arguments["apply_norm"],
            negatives=negatives_of(arguments),
        )
        loss.backward()
        assert_close(loss.detach().reshape(1), tensors[f"gram.{name}.{level}.loss"])
        assert_close(student.grad, tensors[f"gram.{name}.{level}.student_grad"])


@pytest.mark.parametrize("antialias", [False, True])
def test_dinov3s_resized_patches(antialias):
    metadata, tensors = read_golden("dinov3_losses")
    golden = metadata["gram_resize"]
    resized = resize_patches(tensors["gram.resize.input"], tuple(golden["from"]), tuple(golden["to"]), antialias)
    assert_close(resized, tensors[f"gram.resize.{'antialias' if antialias else 'plain'}"])


def test_a_case_worked_by_hand():
    """Two patches at a right angle where the teacher's are opposite: two of four entries differ, by 1."""
    student = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    teacher = torch.tensor([[[1.0, 0.0, 0.0], [-3.0, 0.0, 0.0]]])  # of another width
    assert gram_loss(student, teacher) == 0.5
    assert gram_loss(student, teacher, negatives="remove") == 0
    assert gram_loss(-student.flip(1), student) == 0  # no rotation or mirror is seen


def test_the_mean_over_microbatches_is_the_loss_of_the_batch():
    student, teacher = torch.randn(6, 5, 4), torch.randn(6, 5, 3)
    microbatches = [gram_loss(*parts) for parts in zip(student.chunk(3), teacher.chunk(3))]
    assert_close(sum(microbatches) / 3, gram_loss(student, teacher))


def test_rows_and_columns_keep_their_places():
    tokens = torch.arange(6.0).repeat_interleave(4).view(1, 24, 1)  # rows of 4 patches
    resized = resize_patches(tokens, (6, 4), (3, 2)).view(3, 2)
    assert torch.allclose(resized[:, 0], resized[:, 1])
    assert resized[0, 0] < resized[1, 0] < resized[2, 0]
    assert resize_patches(tokens, (6, 4), (6, 4)) is tokens


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("negatives", ["keep", "remove", "remove_teacher"])
def test_the_gradient_is_that_of_the_loss(per_image, negatives):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 4).double()
    assert torch.autograd.gradcheck(lambda x: gram_loss(x, teacher, per_image=per_image, negatives=negatives), student)


def test_float32_whatever_the_autocast_and_no_gradient_to_the_teacher():
    student, teacher = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gram_loss(student, teacher)
    assert torch.equal(actual, gram_loss(student, teacher))
    actual.backward()
    assert teacher.grad is None


def test_what_cannot_work_is_refused():
    tokens = torch.randn(2, 6, 4)
    with pytest.raises(ValueError, match="negatives='drop' must be one of keep, remove, remove_teacher"):
        gram_loss(tokens, tokens, negatives="drop")
    with pytest.raises(ValueError, match="needs the same patches"):
        gram_loss(tokens, tokens[:, :5])
    with pytest.raises(ValueError, match="needs the same patches"):
        gram_loss(tokens[:, :0], tokens[:, :0])
    with pytest.raises(ValueError, match=r"\(2, 6, 4\) are not those of 2 x 2 patches"):
        resize_patches(tokens, (2, 2), (1, 1))
