"""Watching pretraining without labels: by retrieval of the other view of images that are held out."""

import pytest
import torch
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.training_data import UnreadableImage
from modeling_dino.training.view_retrieval import ViewRetrieval, draw_held_out, retrieval_accuracy


CROPS = MultiCrop(MultiCropConfig(global_crop_size=32, local_crop_size=16, num_local_crops=1))


def test_accuracy_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.1]])
    second = torch.tensor([[5.0, 0.1], [1.0, 1.0], [0.0, 1.0]])
    # the nearest of the second: 0, 2, 1; of the first: 0, 2, 1
    assert retrieval_accuracy(first, second) == pytest.approx(100 / 3)
    assert retrieval_accuracy(first, first) == 100
    # the rows find 0, 0, 1, the columns 0, 2, 2: one and two of three
    third = torch.tensor([[1.0, 0.2], [1.0, 1.0], [0.6, 1.0]])
    first = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 1.1]])
    assert retrieval_accuracy(first, third) == pytest.approx(100 * (1 + 1) / 6)


def test_the_same_feature_for_all_images_is_chance():
    assert retrieval_accuracy(torch.ones(20, 3), torch.ones(20, 3)) == pytest.approx(5)


def images(number: int) -> list[torch.Tensor]:
    return [torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(i)) for i in range(number)]


def test_views_are_fixed_and_draw_nothing_from_the_training(one_thread):
    model = DinoModel(tiny_config(head_type=None)).eval()
    watch = ViewRetrieval(images(20), CROPS, seed=1)
    state = torch.get_rng_state()
    assert [watch(model) for _ in range(2)] == [watch(model)] * 2
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(watch.views[3], ViewRetrieval(images(20), CROPS, seed=1).views[3])
    assert not torch.equal(watch.views[3], ViewRetrieval(images(20), CROPS, seed=2).views[3])
    assert watch.views[3].shape == (2, 3, 32, 32)
    assert watch(model) == {
        "view_top1": pytest.approx(ViewRetrieval(images(20), CROPS, 1, num_workers=1)(model)["view_top1"])
    }


class Unreadable(list):
    def __getitem__(self, index):
        if index % 3 == 1:
            raise UnreadableImage(f"{index}: broken")
        return super().__getitem__(index)


def test_what_cannot_be_read_is_left_out(one_thread):
    model = DinoModel(tiny_config(head_type=None)).eval()
    with_gaps = ViewRetrieval(Unreadable(images(20)), CROPS)
    assert 0 <= with_gaps(model)["view_top1"] <= 100
    with pytest.raises(ValueError, match="fewer than two of the images that are held out can be read"):
        ViewRetrieval(Unreadable(images(2)), CROPS)(model)


def test_at_the_first_that_cannot_be_read_it_fails_where_it_is_told_to(one_thread):
    model = DinoModel(tiny_config(head_type=None)).eval()
    with pytest.raises(UnreadableImage, match="cannot read 1: broken"):
        ViewRetrieval(Unreadable(images(20)), CROPS, on_error="fail")(model)


def test_which_images_are_held_out():
    held_out = draw_held_out(250, seed=0)
    assert len(held_out) == len(set(held_out)) == 25
    assert set(held_out) < set(range(250))
    assert held_out == draw_held_out(250, seed=0) != draw_held_out(250, seed=1)
    assert len(draw_held_out(50_000, seed=0)) == 1000
    with pytest.raises(
        ValueError, match=r"80 images are too few to hold 10% of them out to watch .*: give at least 100"
    ):
        draw_held_out(80, seed=0)
