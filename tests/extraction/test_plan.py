"""How processes share an extraction, by clocks that are simulated: no machine has so many here."""

import heapq
import itertools
import random
from collections import deque
from types import SimpleNamespace

import pytest

from modeling_dino.extraction.plan import Plan


IMAGENET, IMAGENET_22K = 1_281_167, 14_197_122
BATCH_SIZE = 256
AHEAD = 8  # batches that are read before they are computed


class Numbers:
    """A source of images that are only numbers."""

    def __init__(self, num_images: int):
        self.num_images = num_images

    def parts(self, rows: int) -> list[range]:
        return [range(start, min(start + rows, self.num_images)) for start in range(0, self.num_images, rows)]

    def read(self, part: range):
        return iter(part)


def simulate(
    speeds: list[float], num_images: int = IMAGENET, found: set[int] = frozenset()
) -> tuple[list[float], list[int]]:
    """Returns when each process is done, at so many images a second, and the first image of each batch."""
    source = Numbers(num_images)
    folder = SimpleNamespace(shapes={"feature": (384,)}, shards={}, is_whole=found.__contains__)
    take, computed = itertools.count().__next__, []
    plans = [iter(Plan(source, folder, BATCH_SIZE, rank, len(speeds), take)) for rank in range(len(speeds))]
    ahead, done = [deque(itertools.islice(plan, AHEAD)) for plan in plans], [0.0] * len(speeds)
    clocks = [(0.0, rank) for rank in range(len(speeds))]
    while clocks:
        clock, rank = heapq.heappop(clocks)
        if not ahead[rank]:
            done[rank] = clock
            continue
        batch = ahead[rank].popleft()
        ahead[rank] += itertools.islice(plans[rank], 1)
        computed.append(batch.records[0])
        heapq.heappush(clocks, (clock + len(batch.records) / speeds[rank], rank))
    return done, computed


@pytest.mark.parametrize(
    ("num_processes", "num_images", "most"),
    [(8, IMAGENET, 0.03), (64, IMAGENET_22K, 0.03), (64, IMAGENET, 0.12)],  # the last takes ten seconds
)
@pytest.mark.parametrize("slowest", [1.0, 0.5])
def test_processes_of_uneven_speed_end_at_nearly_the_same_time(num_processes, num_images, most, slowest):
    draw = random.Random(0)
    speeds = [2000 * draw.uniform(0.8, 1.2) for _ in range(num_processes)]
    speeds[-1] *= slowest
    done, computed = simulate(speeds, num_images)
    assert len(set(computed)) == len(computed)
    idle = 1 - sum(done) / (max(done) * num_processes)
    assert idle <= most


def test_what_is_left_is_shared_anew():
    _, everything = simulate([1.0])
    found = set(range(0, 1600, 3))
    done, computed = simulate([1.0, 2.0, 3.0], found=found)
    assert len(computed) < len(everything)
    assert set(computed) < set(everything)
    assert 1 - sum(done) / (max(done) * 3) <= 0.03


def test_shards_of_another_size_are_refused():
    """A version that cut them otherwise has begun them: their places would mean other images."""
    shard = SimpleNamespace(rows=250, remarks={"skipped": {"broken.jpg": "why"}})
    folder = SimpleNamespace(
        shapes={"feature": (384,)}, path="features", shards={(0, 0): shard}, is_whole=lambda part: False
    )
    plan = Plan(Numbers(1000), folder, BATCH_SIZE, 0, 1, itertools.count().__next__)
    with pytest.raises(ValueError, match=r"features was begun with shards of another size, .*: choose another folder"):
        plan.check_rows()
    shard.rows = 255
    plan.check_rows()
