"""Items do not depend on workers, processes and interruptions; every source gives its images in any order."""

import io
import pickle
import tarfile
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset

from modeling_dino.data.sources import open_source
from modeling_dino.training.multi_crop import MultiCrop, MultiCropConfig
from modeling_dino.training.trainer import collate_crops
from modeling_dino.training.training_data import (
    MultiCropDataset,
    SourceImages,
    StepSampler,
    UnreadableImage,
    draw_seed,
)


pytestmark = pytest.mark.usefixtures("one_thread")
CROPS = MultiCropConfig(num_local_crops=1, global_crop_size=16, local_crop_size=8)
NUM_IMAGES = 10


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8))


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    for number in range(NUM_IMAGES):
        (path / f"{number}.png").write_bytes(encoded(number))
    return path


def images_of(path) -> SourceImages:
    return SourceImages(open_source(str(path)).indexed())


def dataset_of(path, **arguments) -> MultiCropDataset:
    return MultiCropDataset(images_of(path), MultiCrop(CROPS), **arguments)


def loader(dataset, num_workers=0, **arguments) -> DataLoader:
    return DataLoader(dataset, batch_size=3, collate_fn=collate_crops, num_workers=num_workers, **arguments)


def crops(batches) -> list[torch.Tensor]:
    return [crop for batch in batches for crop in batch["pixel_values"]]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    assert all(map(torch.equal, found, expected))


def test_batches_are_lists_of_crops_the_global_ones_first(folder):
    (batch, *_) = loader(dataset_of(folder))
    assert list(batch) == ["pixel_values"]
    assert [tuple(crop.shape) for crop in batch["pixel_values"]] == [(3, 3, 16, 16), (3, 3, 16, 16), (3, 3, 8, 8)]


def test_crops_of_several_sizes_have_one_in_each_step(folder):
    """Drawn by their shares, for each step of each epoch; the crops are those of that size alone."""
    sizes = {"global_crop_size": (16, 24, 32), "local_crop_size": (8, 8, 12), "size_shares": (1, 2, 5)}
    config = replace(CROPS, **sizes)
    alone = {
        one.global_crop_size: MultiCropDataset(images_of(folder), MultiCrop(one)) for one in config.of_each_size()
    }
    dataset = MultiCropDataset(images_of(folder), MultiCrop(config))
    for index in (0, 3):
        for step in range(8):
            found = dataset[step, index]["pixel_values"]
            assert_same(found, alone[found[0].shape[-1]][index]["pixel_values"])
            assert len(found[0]) == len(dataset[step, 1]["pixel_values"][0])
    assert {len(dataset[step, 0]["pixel_values"][0][0]) for step in range(40)} == {16, 24, 32}
    drawn = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        drawn += [dataset._size_of_step(step) for step in range(200)]
    assert chisquare(np.bincount(drawn), [1000, 2000, 5000]).pvalue > 1e-3
    assert len(set(map(tuple, np.reshape(drawn, (40, 200))))) == 40, "each epoch draws its own"


def test_crops_of_several_sizes_need_the_step(folder):
    dataset = MultiCropDataset(images_of(folder), MultiCrop(replace(CROPS, global_crop_size=(16, 24))))
    with pytest.raises(ValueError, match="drawn for each step, which is not given: take a StepSampler"):
        dataset[0]
    batches = list(loader(dataset, sampler=StepSampler(range(9), batch_size=3)))
    assert len(batches) == 3
    assert dataset_of(folder).needs_step is False


def test_workers_change_nothing_in_any_epoch(folder):
    alone, shared = dataset_of(folder), dataset_of(folder)
    loaders = loader(alone), loader(shared, num_workers=2)
    seen = []
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        torch.manual_seed(epoch)  # of no account
        seen.append(crops(loaders[0]))
        assert_same(crops(loaders[1]), seen[-1])
    assert not any(map(torch.equal, *seen))


def test_an_item_is_its_own_in_each_epoch_and_draws_from_nobody(folder):
    dataset = dataset_of(folder)
    before = torch.random.get_rng_state()
    first, other, again = dataset[4], dataset[5], dataset[4]
    dataset.set_epoch(1)
    later = dataset[4]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"][0], other["pixel_values"][0])
    assert not torch.equal(first["pixel_values"][0], later["pixel_values"][0])
    assert not torch.equal(first["pixel_values"][0], first["pixel_values"][1])
    assert not torch.equal(first["pixel_values"][0], dataset_of(folder, seed=1)[4]["pixel_values"][0])
    torch.manual_seed(0)
    (crop, *_) = MultiCrop(CROPS)(picture(4), draw_seed(0, 0, 4))
    assert torch.equal(first["pixel_values"][0], crop)


# ---------------------------------------------------------------------------------------------------- bad images


def test_another_image_stands_for_one_that_cannot_be_read(folder, messages):
    for number in (2, 5):
        (folder / f"{number}.png").write_bytes(encoded(number)[:100])
    dataset = dataset_of(folder)
    items = [dataset[index]["pixel_values"] for index in range(NUM_IMAGES)]
    lines = messages()
    assert len(lines) == 2
    assert f"skipped {folder / '2.png'}: " in lines[0]
    assert "another image stands in its place" in lines[0]
    dataset.set_epoch(1)
    dataset[2]
    assert len(messages()) == 2, "warned of once"
    assert set(dataset.unreadable()) == {str(folder / "2.png"), str(folder / "5.png")}
    assert_same(dataset_of(folder)[2]["pixel_values"], items[2])  # the same whatever was read before
    assert not any(torch.equal(items[2][0], items[i][0]) for i in range(NUM_IMAGES) if i != 2)


def test_workers_tell_of_images_they_could_not_read(folder):
    (folder / "7.png").write_bytes(b"")
    dataset = dataset_of(folder)
    batches = list(loader(dataset, num_workers=2))
    assert sum(len(batch["pixel_values"][0]) for batch in batches) == NUM_IMAGES
    assert dataset.unreadable() == {str(folder / "7.png"): "empty"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_or_one_line_says_which_image_it_was(folder, num_workers):
    for number in range(NUM_IMAGES):
        (folder / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(
        UnreadableImage, match=r"^cannot read .*\.png: .*\(--on-error skip goes on without it\)$"
    ) as raised:
        next(iter(loader(dataset_of(folder, on_error="fail"), num_workers)))
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(UnreadableImage, match=r"^100 images in a row cannot be read; the last: .*png"):
        next(iter(loader(dataset_of(folder), num_workers)))


@pytest.mark.slow
def test_no_images(tmp_path):
    with pytest.raises(ValueError, match="no images to train on"):
        dataset_of(tmp_path)
    with pytest.raises(ValueError, match="unknown on_error 'ignore'"):
        MultiCropDataset([1], MultiCrop(CROPS), on_error="ignore")


def test_what_reading_loses_is_said_once(tmp_path, messages):
    for number in range(3):
        Image.fromarray(np.full((9, 9), 300 + number, np.uint16)).save(tmp_path / f"{number}.png")
    images = images_of(tmp_path)
    assert [image.mode for image in images] == ["RGB"] * 3
    (line,) = messages()
    assert "0.png, and perhaps others: values of uint16" in line


# ------------------------------------------------------------------------------------------------------- sources


def write_tar(path, numbers, mode="w"):
    with tarfile.open(path, mode) as tar:
        for number in numbers:
            for suffix, content in ((".cls", b"1"), (".png", encoded(number)), (".json", b"{}")):
                info = tarfile.TarInfo(f"{number:03d}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path, numbers):
    table = {"image": [{"bytes": encoded(n), "path": None} for n in numbers], "label": [0 for _ in numbers]}
    pq.write_table(pa.table(table), path)


def in_tars(folder):
    write_tar(folder / "a.tar", range(6))
    write_tar(folder / "b.tar", range(6, NUM_IMAGES))
    return folder / "*.tar"


def in_parquet(folder):
    write_parquet(folder / "a.parquet", range(6))
    write_parquet(folder / "b.parquet", range(6, NUM_IMAGES))
    return folder / "*.parquet"


def in_a_dataset(folder):
    rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(NUM_IMAGES)]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).save_to_disk(
        folder / "d"
    )
    return folder / "d"


def in_files(folder):
    for number in range(NUM_IMAGES):
        (folder / f"{number}.png").write_bytes(encoded(number))
    return folder


@pytest.mark.parametrize("write", [in_tars, in_parquet, in_a_dataset, in_files])
def test_images_of_every_source_in_any_order(write, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "source").mkdir()
    source = open_source(str(write(tmp_path / "source")))
    indexed = source.indexed()
    images = pickle.loads(pickle.dumps(SourceImages(indexed)))  # as for workers that are spawned
    assert len(images) == NUM_IMAGES
    for number in (7, 0, 9, 3):
        np.testing.assert_array_equal(np.asarray(images[number]), np.asarray(picture(number)))
    assert indexed.indexed() is indexed
    in_order = [record.name for part in indexed.parts(4) for record in indexed.read(part)]
    assert in_order == [indexed.record(index).name for index in range(NUM_IMAGES)]


def test_a_compressed_tar_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar.gz", range(2), "w:gz")
    with pytest.raises(ValueError, match=r"a\.tar\.gz is compressed, so its images cannot be read in any order"):
        open_source(str(path)).indexed()


def test_a_damaged_tar_gives_what_lies_before_the_damage(tmp_path):
    path = write_tar(tmp_path / "a.tar", range(4))
    path.write_bytes(path.read_bytes()[:-12000])
    indexed = open_source(str(path)).indexed()
    assert 0 < indexed.num_images < 5
    assert "the tar is damaged" in indexed.notes[str(path)]
    np.testing.assert_array_equal(np.asarray(SourceImages(indexed)[0]), np.asarray(picture(0)))


def test_a_stream_cannot_be_read_in_any_order():
    rows = datasets.Dataset.from_dict({"image": [encoded(0)]}).to_iterable_dataset()
    from modeling_dino.data.image_tables import from_dataset
    from modeling_dino.data.options import TableOptions

    with pytest.raises(ValueError, match="only be read one after the other"):
        from_dataset("stream", rows, None, TableOptions()).indexed()


def test_grey_images_and_tensors(folder):
    grey = MultiCropDataset(SourceImages(open_source(str(folder)).indexed(), 1), MultiCrop(CROPS, 1))
    assert grey[0]["pixel_values"][0].shape == (1, 16, 16)
    tensors = MultiCropDataset(torch.rand(5, 4, 20, 20), MultiCrop(CROPS, 4))
    assert isinstance(tensors, Dataset)
    assert [tuple(crop.shape) for crop in tensors[3]["pixel_values"]] == [(4, 16, 16)] * 2 + [(4, 8, 8)]


def test_the_replacements_are_spread(folder, monkeypatch):
    """Not the neighbour, which would be seen twice as often."""
    asked = []

    class Images(list):
        def __getitem__(self, index):
            asked.append(index)
            if index == 0:
                raise UnreadableImage("0: bad")
            return torch.zeros(3, 8, 8)

    dataset = MultiCropDataset(Images(range(NUM_IMAGES)), lambda image, seed: [image])
    for epoch in range(60):
        dataset.set_epoch(epoch)
        dataset[0]
    assert {index for index in asked if index} == set(range(1, NUM_IMAGES))
