"""What crops are drawn, without making them; and tests whether two samples are of one distribution, or independent."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from original_crops import views_of_the_original
from PIL import Image, ImageOps
from scipy.stats import chi2, chi2_contingency, ks_2samp
from torchvision import transforms as v1
from torchvision.transforms import v2

from modeling_dino.training import multi_crop
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.training_data import MultiCropDataset


JITTER = ("brightness", "contrast", "saturation", "hue")
BINS = 4  # of a number, where pairs of numbers are compared
# a number of a view, and whether it is a category
COLUMNS = {"share": False, "ratio": False, "x": False, "y": False, "border": True, "flip": True, "jitter": True}
COLUMNS |= {"order": True, **dict.fromkeys(JITTER, False), "grey": True, "blur": True, "radius": False}
COLUMNS |= {"solarize": True}
VIEWS = 4  # two global and two local ones


class Recorder:
    """
    Takes the place of all that changes images, ours and torchvision's, and notes what it would have done.

    Attributes:
        views: of each view its operations, each a name and numbers.
    """

    def __init__(self, monkeypatch):
        self.views: list[list[tuple]] = []
        functional, pillow = v1.functional, Image.Image
        for name, part in {"RandomHorizontalFlip": "flip", "RandomGrayscale": "grey"}.items():
            monkeypatch.setattr(getattr(v2, name), "transform", self._note(part, lambda _, image, params: ()))
        box = ("top", "left", "height", "width")
        note_box = self._note("crop", lambda _, image, params: [params[side] for side in box], begins=True)
        monkeypatch.setattr(v2.RandomResizedCrop, "transform", note_box)
        monkeypatch.setattr(functional, "resized_crop", self._note("crop", lambda _, *box: box[:4], begins=True))
        monkeypatch.setattr(functional, "hflip", self._note("flip"))
        monkeypatch.setattr(functional, "rgb_to_grayscale", self._note("grey"))
        for name in JITTER:
            note = self._note(name, lambda _, factor: [factor])
            monkeypatch.setattr(functional, f"adjust_{name}", note)
            monkeypatch.setattr(v2.functional, f"adjust_{name}", note)
        monkeypatch.setattr(multi_crop, "contrast", self._note("contrast", lambda _, factor: [factor]))
        monkeypatch.setattr(pillow, "filter", self._note("blur", lambda _, blur: [blur.radius]))
        for module in (ImageOps, v2.functional):
            monkeypatch.setattr(module, "solarize", self._note("solarize", lambda _, threshold=128: [threshold]))
        monkeypatch.setattr(MultiCrop, "_pixel_values", lambda _, views: views)

    def _note(self, name: str, numbers: Callable = lambda *_: (), begins: bool = False) -> Callable:
        def note(*arguments, **_):
            if begins:
                self.views.append([])
            self.views[-1].append((name, *numbers(*arguments)))
            return next(argument for argument in arguments if isinstance(argument, Image.Image))

        note.__name__ = name  # which torchvision reads
        return note

    def take(self, width: int, height: int) -> np.ndarray:
        """Returns the numbers of all views since the last call, (items, views, columns)."""
        rows = [row_of(view, width, height) for view in self.views]
        self.views = []
        return np.array(rows, float).reshape(-1, VIEWS, len(COLUMNS))


def row_of(view: Sequence[tuple], width: int, height: int) -> list[float]:
    """Returns the numbers of a view; those of what did not happen are not numbers."""
    done = {name: numbers for name, *numbers in view}
    jitter = [name for name, *_ in view if name in JITTER]
    stages = ["jitter" if name in JITTER else name for name, *_ in view]
    steps = list(dict.fromkeys(stages))
    assert len(view) == len(done)
    assert steps == [name for name in ("crop", "flip", "jitter", "grey", "blur", "solarize") if name in steps]
    top, left, h, w = done["crop"]
    free_x, free_y = width - w, height - h
    touched = (left == 0, left == free_x, top == 0, top == free_y)
    order = sum(JITTER.index(name) * 4**i for i, name in enumerate(jitter)) if jitter else np.nan
    return [
        w * h / (width * height),
        np.log(w / h),
        left / free_x if free_x else np.nan,
        top / free_y if free_y else np.nan,
        sum(2**i for i, touches in enumerate(touched) if touches),
        "flip" in done,
        bool(jitter),
        order,
        *(done[name][0] if jitter else np.nan for name in JITTER),
        "grey" in done,
        "blur" in done,
        done["blur"][0] if "blur" in done else np.nan,
        done["solarize"][0] if "solarize" in done else 0,
    ]


def our_draws(recorder: Recorder, size: tuple[int, int], items: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Returns what is drawn for items (seed, epoch, index) of a data set of images of a size."""
    images = [Image.new("RGB", size)] * (1 + max(index for *_, index in items))
    dataset = MultiCropDataset(images, MultiCrop(MultiCropConfig(num_local_crops=VIEWS - 2)))
    for dataset.seed, epoch, index in items:
        dataset.set_epoch(epoch)
        dataset[index]
    return recorder.take(*size)


def their_draws(recorder: Recorder, size: tuple[int, int], count: int, seed: int = 1) -> np.ndarray:
    """Returns what the original draws for as many images."""
    image, views = Image.new("RGB", size), views_of_the_original(num_local_crops=VIEWS - 2, end=())
    torch.manual_seed(seed)
    for _ in range(count):
        for view in views:
            view(image)
    return recorder.take(*size)


def p_values(ours: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[str, float]]:
    """
    Yields for each view and number how likely it is that both samples (items, views, columns) are of one distribution:
    by the tests of Kolmogorov and Smirnov, and of Pearson for categories, of which a missing number is one.
    """
    for view in range(ours.shape[1]):
        for column, (name, is_category) in enumerate(COLUMNS.items()):
            a, b = ours[:, view, column], theirs[:, view, column]
            if is_category:
                yield f"{name} of view {view}", same_rates(a, b)
            elif not (np.isnan(a).all() and np.isnan(b).all()):
                yield f"{name} of view {view}", ks_2samp(a[~np.isnan(a)], b[~np.isnan(b)]).pvalue


def same_rates(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Pearson's p-value for two samples of categories; categories that are rare in both are joined."""
    a, b = np.nan_to_num(a, nan=-1), np.nan_to_num(b, nan=-1)
    values = np.unique(np.concatenate([a, b]))
    counts = np.array([[(sample == value).sum() for value in values] for sample in (a, b)])
    is_rare = counts.sum(0) < 20
    counts = np.column_stack([counts[:, ~is_rare], counts[:, is_rare].sum(1)])
    counts = counts[:, counts.sum(0) > 0]
    return chi2_contingency(counts).pvalue if counts.shape[1] > 1 else 1.0


def one_hot(numbers: np.ndarray, like: np.ndarray | None = None) -> tuple[np.ndarray, list[slice]]:
    """
    Returns which bin each number is in: (N, columns) -> (N, bins of all columns), and the bins of each column.

    Args:
        like: (N', columns), whose quantiles are the limits of the bins; by default the numbers' own.
    """
    bins, parts = [], []
    for column, known in zip(numbers.T, (numbers if like is None else like).T):
        values = np.unique(known[~np.isnan(known)])
        if len(values) > BINS:
            values = np.unique(np.quantile(known[~np.isnan(known)], np.arange(BINS) / BINS))
        found = np.where(np.isnan(column), 0, 1 + np.searchsorted(values, column, side="right"))
        found = np.eye(len(values) + 2)[found.astype(int)]
        parts.append(slice(sum(part.shape[1] for part in bins), sum(part.shape[1] for part in bins) + found.shape[1]))
        bins.append(found)
    return np.concatenate(bins, 1), parts


def independence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    Returns for each pair of a column of `a` (N, columns) and one of `b` how likely such a dependence is by chance:
    Pearson's test of their bins.
    """
    (a_bins, a_parts), (b_bins, b_parts) = one_hot(a), one_hot(b)
    joint, expected = a_bins.T @ b_bins, np.outer(a_bins.sum(0), b_bins.sum(0)) / len(a)
    return np.array([_pearson(joint[s, t], expected[s, t]) for s in a_parts for t in b_parts])


def same_pairs(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Returns for each pair of columns (N, columns) how likely it is that both samples have one joint distribution."""
    (a, parts), (b, _) = one_hot(ours, theirs), one_hot(theirs)
    a, b = a.T @ a, b.T @ b
    share = len(ours) / (len(ours) + len(theirs))
    found = []
    for first, s in enumerate(parts):
        for t in parts[first + 1 :]:
            together = a[s, t] + b[s, t]
            statistic = (a[s, t] - share * together) ** 2 / np.maximum(share * (1 - share) * together, 1e-12)
            found.append(chi2.sf(statistic[together >= 20].sum(), max((together >= 20).sum() - 1, 1)))
    return np.array(found)


def _pearson(counts: np.ndarray, expected: np.ndarray) -> float:
    counts = counts[expected.any(1)][:, expected.any(0)]
    expected = expected[expected.any(1)][:, expected.any(0)]
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), freedom) if freedom else 1.0
