"""
What is drawn is distributed as the original draws it, and independent of what is drawn for others: crops, the order of
the images, and the first weights. Seeds are fixed; each test would fail by chance in one of a thousand cases.
"""

from itertools import combinations

import numpy as np
import pytest
import torch
from draws import COLUMNS, VIEWS, Recorder, independence, our_draws, p_values, same_pairs, same_rates, their_draws
from random_crops import trainer_of
from scipy.stats import ks_2samp, norm
from tiny_models import tiny_config
from torch import nn
from torch.utils.data import Dataset
from torchvision.models import resnet18
from transformers import set_seed

from modeling_dino import DinoConfig, DinoForPreTraining, DinoModel


pytestmark = pytest.mark.usefixtures("one_thread")
FEW = 1e-3
SIZE = (64, 48)  # of the images
SEEDS, EPOCHS, IMAGES = 2, 16, 32


def assert_likely(p_values, what: str = ""):
    """Of many p-values the least counts, times their number."""
    p_values = np.array(p_values)
    assert len(p_values)
    assert p_values.min() * len(p_values) > FEW, f"{what}: {p_values.min()} of {len(p_values)}"


# ------------------------------------------------------------------------------------------------------------- crops


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture(scope="module")
def draws() -> tuple[np.ndarray, np.ndarray]:
    """Ours, (seeds, epochs, images, views, columns), and the original's, (images, views, columns)."""
    items = [(seed, epoch, index) for seed in range(SEEDS) for epoch in range(EPOCHS) for index in range(IMAGES)]
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        ours, theirs = our_draws(recorder, SIZE, items), their_draws(recorder, SIZE, len(items))
    return ours.reshape(SEEDS, EPOCHS, IMAGES, *ours.shape[1:]), theirs


def test_each_number_is_distributed_as_the_originals(draws):
    ours, theirs = draws
    found = list(p_values(ours.reshape(theirs.shape), theirs))
    assert_likely([p for _, p in found], min(found, key=lambda named: named[1])[0])


def test_numbers_of_a_view_depend_on_each_other_as_the_originals(draws):
    ours, theirs = draws
    ours = ours.reshape(theirs.shape)
    assert_likely(np.concatenate([same_pairs(ours[:, view], theirs[:, view]) for view in range(VIEWS)]))


def test_views_of_an_image_are_independent(draws):
    ours = draws[0].reshape(-1, VIEWS, len(COLUMNS))
    pairs = [independence(ours[:, a], ours[:, b]) for a, b in combinations(range(VIEWS), 2)]
    assert_likely(np.concatenate(pairs))


def test_images_epochs_and_seeds_are_independent(draws):
    ours = draws[0][..., [0, -1], :].reshape(SEEDS, EPOCHS, IMAGES, -1)  # the first view and the last
    square = ours[:, :, :EPOCHS]
    upper = np.triu_indices(EPOCHS, 1)
    pairs = {
        "the next image": (ours[:, :, :-1], ours[:, :, 1:]),
        "the image of the next batch": (ours[:, :, :-8], ours[:, :, 8:]),
        "the next epoch": (ours[:, :-1], ours[:, 1:]),
        "the next seed": (ours[:-1], ours[1:]),
        "the next seed, an epoch before": (ours[:-1, 1:], ours[1:, :-1]),
        "the next image, an epoch before": (ours[:, 1:, :-1], ours[:, :-1, 1:]),
        "epoch and image changed": (square[:, upper[0], upper[1]], square[:, upper[1], upper[0]]),
    }
    for name, (a, b) in pairs.items():
        assert_likely(independence(*(x.reshape(-1, x.shape[-1]) for x in (a, b))), name)


def test_no_draw_comes_twice(draws):
    views = np.nan_to_num(draws[0].reshape(-1, len(COLUMNS)), nan=-9)
    continuous = views[views[:, list(COLUMNS).index("jitter")] == 1]
    assert len(np.unique(continuous, axis=0)) == len(continuous) > 1000


@pytest.mark.slow
@pytest.mark.parametrize("size", [(500, 375), (40, 31), (320, 20), (7, 90), (1, 1)])
def test_crops_of_images_of_any_size(recorder, size):
    """Of a long image few boxes fit, and the middle is taken."""
    items = [(3, 1, index) for index in range(700)]
    ours, theirs = our_draws(recorder, size, items), their_draws(recorder, size, len(items))
    assert_likely([p for _, p in p_values(ours, theirs)])
    assert_likely(np.concatenate([same_pairs(ours[:, view], theirs[:, view]) for view in range(VIEWS)]))


# ------------------------------------------------------------------------------------------------------------- order


class Numbers(Dataset):
    """Each item says which it is, and of which epoch."""

    def __init__(self, num_images: int):
        self.num_images, self.epoch = num_images, 0

    def __len__(self) -> int:
        return self.num_images

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": [torch.tensor([self.epoch, index])]}


def orders(folder, seed: int, epochs: int, num_images: int = 18, batch_size: int = 4) -> np.ndarray:
    """Returns the numbers of the images as the trainer takes them, (epochs, images)."""
    trainer = trainer_of(folder, data=Numbers(num_images), seed=seed, per_device_train_batch_size=batch_size)
    loader = trainer.get_train_dataloader()
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found.append(torch.cat([batch["pixel_values"][0][:, 1] for batch in loader]).tolist())
    return np.array(found)


def test_the_order_is_a_uniform_permutation_anew_in_each_epoch(tmp_path):
    found = orders(tmp_path, seed=3, epochs=400)
    num_epochs, num_images = found.shape
    assert all(len(set(order)) == num_images for order in found.tolist())
    assert len(np.unique(found, axis=0)) == num_epochs
    found = found.astype(float)
    assert_likely(independence(found[:-1], found[1:]), "epochs")
    counts = np.array([[(column == image).sum() for image in range(18)] for column in found.T])
    places = np.indices(counts.shape)[1].ravel()
    assert same_rates(np.repeat(places, counts.ravel()), np.tile(np.arange(18.0), 400 * num_images // 18)) > FEW
    # each pair of an image and the next one is as likely as any other
    steps = np.diff(found, axis=1).ravel() % 18
    assert same_rates(steps, np.tile(np.arange(1.0, 18), len(steps) // 17)) > FEW


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_trainer_takes_each_image_once_in_an_epoch_with_its_draws(tmp_path, num_workers):
    taken = []
    trainer = trainer_of(tmp_path, data=Numbers(16), num_train_epochs=3, dataloader_num_workers=num_workers)

    def note(model, inputs, **_):
        taken.append(inputs["pixel_values"][0])
        return sum(parameter.sum() * 0 for parameter in model.parameters())

    trainer.compute_loss = note
    trainer.steps.on_pre_optimizer_step = trainer.steps.on_optimizer_step = lambda *_, **__: None
    trainer.train()
    taken = torch.cat(taken).unflatten(0, (3, 16))
    assert [set(epochs) for epochs in taken[..., 0].tolist()] == [{0}, {1}, {2}]
    assert all(sorted(indices) == list(range(16)) for indices in taken[..., 1].tolist())


# ----------------------------------------------------------------------------------------------------- first weights


@torch.no_grad()
def original_weights(name: str, like: dict[str, torch.Tensor]) -> torch.Tensor:
    """
    Draws a parameter of a ViT or its head as the original does: `_init_weights` of
    https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py knows linears and layer norms, and the
    head calls it before its last layer is made.
    """
    module, _, part = name.rpartition(".")
    if part == "weight_v":
        return nn.Linear(*like[name].shape[::-1]).weight
    if module.endswith("patch_embed.proj"):
        out_channels, in_channels, *size = like[f"{module}.weight"].shape
        return getattr(nn.Conv2d(in_channels, out_channels, size), part)
    return nn.init.trunc_normal_(torch.empty(like[name].shape), std=0.02)


@torch.no_grad()
def first_weights(count: int, **overrides) -> list[dict[str, torch.Tensor]]:
    """Returns the student's first weights with the seeds 0, 1, …, whose teacher has the same."""
    found = []
    for seed in range(count):
        set_seed(seed)
        model = DinoForPreTraining(tiny_config("vit", **overrides))
        student, teacher = model.student.state_dict(), model.teacher.state_dict()
        assert all(torch.equal(student[key], teacher[key]) for key in student)
        found.append({name: weight.clone() for name, weight in student.items()})
    return found


def dependence(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the p-value of the correlation of two tensors of independent numbers."""
    a, b = (x.flatten().double() - x.double().mean() for x in (a, b))
    return 2 * norm.sf(((a * b).sum() / (a.norm() * b.norm())).abs().item() * len(a) ** 0.5)


@torch.no_grad()
def check_first_weights(count: int) -> dict[str, float]:
    """Compares the first weights of so many seeds with the original's; returns the p-values."""
    models = first_weights(count)
    found, random = {}, [name for name, weight in models[0].items() if weight.unique().numel() > 1]
    for name in models[0]:
        ours = torch.stack([weights[name] for weights in models])
        if name not in random:
            assert (ours == (1 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "_g")) else 0)).all()
            continue
        theirs = torch.stack([original_weights(name, weights) for weights in models])
        found[name] = ks_2samp(ours.flatten()[:100_000], theirs.flatten()[:100_000]).pvalue
        found[f"{name}, an element over seeds"] = ks_2samp(ours.flatten(1)[:, 0], theirs.flatten(1)[:, 0]).pvalue
        found[f"{name}, the next seed"] = dependence(ours[1:], ours[:-1])
        found[f"{name}, the next element"] = dependence(ours.flatten(1)[:, 1:], ours.flatten(1)[:, :-1])
    for a, b in combinations(random, 2):
        if models[0][a].shape == models[0][b].shape:
            found[f"{a} and {b}"] = dependence(*(torch.stack([weights[n] for weights in models]) for n in (a, b)))
    return found


def test_first_weights_are_distributed_as_the_originals():
    found = check_first_weights(30)
    assert len(found) > 40
    assert_likely(list(found.values()), min(found, key=found.get))


@pytest.mark.slow
def test_first_weights_of_a_resnet_are_distributed_as_torchvisions():
    set_seed(0)
    ours = DinoModel(DinoConfig(backbone="resnet18", resnet_stem="imagenet", head_type=None)).backbone.state_dict()
    theirs = resnet18(weights=None).state_dict()
    found = {}
    for name, weight in ours.items():
        if weight.ndim == 4:
            found[name] = ks_2samp(weight.flatten()[:200_000], theirs[name].flatten()[:200_000]).pvalue
        else:
            assert torch.equal(weight, theirs[name])
    assert_likely(list(found.values()))
