import pytest
import torch
from torch import nn

from modeling_dino.evaluation.mask_propagation import MaskPropagation, grid_labels, pixel_objects, video_size
from modeling_dino.evaluation.options import PropagationSettings


pytestmark = pytest.mark.usefixtures("one_thread")


def labels_by_definition(frames, labels, settings) -> list[torch.Tensor]:
    """Each frame's labels, with all affinities at once, in float64."""
    frames = [frame.double() for frame in frames]
    height, width, _ = frames[0].shape
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ys, xs = ys.flatten(), xs.flatten()
    radius = settings.radius or max(height, width)
    near = ((ys[:, None] - ys).abs() <= radius) & ((xs[:, None] - xs).abs() <= radius)  # (target, source)
    found = [labels.double()]
    for i in range(1, len(frames)):
        used = [0, *range(max(1, i - settings.num_last_frames), i)]
        affinities = []
        for j in used:
            cosine = nn.functional.cosine_similarity(frames[i].flatten(0, 1)[:, None], frames[j].flatten(0, 1), dim=2)
            affinities.append(torch.exp(cosine / settings.temperature) * near)
        affinity = torch.cat(affinities, 1)
        sources = torch.cat([found[j].flatten(1) for j in used], 1)  # (K, sources)
        result = torch.zeros(len(labels), height * width, dtype=torch.float64)
        for patch, row in enumerate(affinity):
            best = row.argsort(descending=True)[: settings.top_k]
            weights = row[best] / row[best].sum()
            result[:, patch] = sources[:, best] @ weights
        found.append(result.view(labels.shape))
    return found[1:]


@pytest.mark.parametrize(
    "settings",
    [
        PropagationSettings(),
        PropagationSettings(num_last_frames=2, radius=1, top_k=3),
        PropagationSettings(num_last_frames=0, radius=3, top_k=1, temperature=0.02),
        PropagationSettings(num_last_frames=3, radius=0, top_k=200),
    ],
)
def test_equal_to_the_definition(settings):
    frames = [torch.randn(6, 9, 12) for _ in range(6)]
    labels = torch.randn(3, 6, 9).softmax(0)
    propagation = MaskPropagation(frames[0], labels, settings)
    for frame, expected in zip(frames[1:], labels_by_definition(frames, labels, settings)):
        found = propagation(frame)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.sum(0), torch.ones(6, 9))


def test_a_patch_that_moves_takes_its_label_with_it():
    features = torch.randn(5, 8, 16)
    labels = torch.zeros(2, 5, 8)
    labels[0], labels[1, 1:3, 1:3], labels[0, 1:3, 1:3] = 1, 1, 0
    propagation = MaskPropagation(features, labels, PropagationSettings(top_k=1, radius=2))
    for step in (1, 2, 3):
        assert torch.equal(propagation(features.roll(step, 1))[1, :, 3:7], labels[1].roll(step, 1)[:, 3:7])
    # too far away for the first frame and for the last
    too_far = MaskPropagation(features, labels, PropagationSettings(top_k=1, radius=2))
    assert not torch.equal(too_far(features.roll(4, 1))[1, :, 5:7], labels[1].roll(4, 1)[:, 5:7])


def test_equally_alike_patches_share():
    features = torch.ones(1, 4, 2)  # all alike, so all stay, more than top_k
    labels = torch.tensor([[[1.0, 1, 1, 0]], [[0, 0, 0, 1]]])
    found = MaskPropagation(features, labels, PropagationSettings(top_k=2, radius=0))(features)
    torch.testing.assert_close(found, torch.tensor([0.75, 0.25]).view(2, 1, 1).expand(2, 1, 4))


@pytest.mark.parametrize(
    ("width", "height", "size", "patch", "expected"),
    [
        (854, 480, 480, 16, (832, 480)),  # DAVIS, as in the original
        (854, 480, 480, 8, (832, 480)),
        (480, 854, 480, 16, (480, 832)),
        (1920, 1080, 480, 16, (832, 480)),
        (860, 480, 480, 14, (854, 476)),  # 64 pixels are not whole patches of 14
        (500, 500, 480, 16, (480, 480)),
        (500, 480, 480, 16, (480, 480)),
        (60, 48, 32, 8, (40, 32)),  # too short for a multiple of 64
    ],
)
def test_sizes(width, height, size, patch, expected):
    assert video_size(width, height, size, patch) == expected


def test_labels_of_patches_are_those_of_their_middles():
    objects = torch.randint(0, 3, (48, 75), dtype=torch.uint8)
    labels = grid_labels(objects, [1, 2], (6, 5))  # patches of 8 x 15, whose middles are at 4 and 7
    assert torch.equal(labels.argmax(0), objects[4::8, 7::15].long())
    assert (labels.sum(0) == 1).all()
    assert torch.equal(grid_labels(objects, [2], (6, 5))[1], labels[2])


def test_pixels_of_labels():
    labels = torch.zeros(3, 4, 6)
    labels[0], labels[1, 1:3, 1:3], labels[2, 3, 5] = 0.6, 0.2, 0.1
    objects = pixel_objects(labels, [4, 9], 8, (64, 96))
    assert objects.shape == (64, 96)
    assert objects.dtype == torch.uint8
    # each from its least to its most: the weak objects are as strong as the background, which is the same everywhere
    assert objects[32, 32] == 4
    assert objects[-1, -1] == 9
    assert objects[0, 0] == 0
    assert not pixel_objects(torch.tensor([1.0, 0]).view(2, 1, 1).expand(2, 4, 6), [1], 8, (32, 48)).any()
    assert pixel_objects(torch.tensor([0.0, 1]).view(2, 1, 1).expand(2, 4, 6), [1], 8, (32, 48)).all()


def test_settings_that_cannot_work():
    for values in ({"top_k": 0}, {"radius": -1}, {"num_last_frames": -1}, {"temperature": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(values))}={next(iter(values.values()))} must be"):
            PropagationSettings(**values)
