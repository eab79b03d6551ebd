# SPDX-License-Identifier: Apache-2.0
"""Reads files that say which images a query should find, by their names.

    {
      "queries": {
        "beach": {"positive": ["beach-1", "beach-2"], "ignored": ["beach"]},
        "tower.jpg": {"easy": ["jpg/tower-1.jpg"], "hard": ["jpg/tower-7.jpg"], "ignored": ["jpg/tower-3.jpg"]}
      }
    }

A query has either `positive` images, or `easy` and `hard` ones, as in the revisited Oxford and Paris
(https://arxiv.org/abs/1803.11285, where ignored ones are called junk). All other images are negative. A name is the
end of a path, with or without the suffix of the file.

Pickles are not read, since they can run anything. Those that are published for the revisited Oxford and Paris are
converted by a few lines, if you trust them:

    data = pickle.load(open("gnd_roxford5k.pkl", "rb"))
    kinds = {"easy": "easy", "hard": "hard", "ignored": "junk"}
    queries = {
        query: {kind: [data["imlist"][i] for i in truth[theirs]] for kind, theirs in kinds.items()}
        for query, truth in zip(data["qimlist"], data["gnd"])
    }
    json.dump({"queries": queries}, open("gnd_roxford5k.json", "w"))
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch


KINDS = ("positive", "easy", "hard", "ignored")
# which kinds are positive in each setup, and which are ignored beside `ignored`:
# https://github.com/facebookresearch/dino/blob/7c446df/eval_image_retrieval.py
SETUPS = {
    "": (["positive"], []),
    "easy": (["easy"], ["hard"]),
    "medium": (["easy", "hard"], []),
    "hard": (["hard"], ["easy"]),
}


class GroundTruth:
    """
    Says which images each query should find, by name.

    Args:
        queries: names of queries -> kinds -> names of images.
        source: the file, for messages.

    Raises:
        ValueError: if `queries` is of another form, an image is of two kinds, or no query has an image to find.
    """

    def __init__(self, queries: dict[str, dict[str, list[str]]], source: str = "the ground truth"):
        self.queries, self.source = queries, source
        if not isinstance(queries, dict) or not queries:
            raise ValueError(f'{source} names no queries: it needs {{"queries": {{name: {{"positive": [names]}}}}}}')
        for name, kinds in queries.items():
            self._check(name, kinds)
        self.setups = [
            setup
            for setup, (wanted, _) in SETUPS.items()
            if any(kinds.get(kind) for kinds in queries.values() for kind in wanted)
        ]
        if not self.setups:
            raise ValueError(f"{source}: no query has an image to find")
        if "" in self.setups and len(self.setups) > 1:
            raise ValueError(f"{source} has positive images, and easy and hard ones: use one or the other")

    def _check(self, name: str, kinds: dict[str, list[str]]):
        if not isinstance(kinds, dict) or not set(kinds) <= set(KINDS):
            raise ValueError(f"{self.source}: query {name!r} may have {', '.join(KINDS)}, each a list of names")
        images = []
        for kind, names in kinds.items():
            if not isinstance(names, list) or not all(isinstance(image, str) for image in names):
                raise ValueError(f"{self.source}: {kind} of query {name!r} is not a list of names")
            images += names
        if len(set(images)) < len(images):
            twice = next(image for image in images if images.count(image) > 1)
            raise ValueError(f"{self.source}: query {name!r} names {twice!r} twice")

    def find(self, names: Sequence[str | int], index_names: Sequence[str | int]) -> "FoundGroundTruth":
        """
        Finds the places of queries and images.

        Args:
            names: names of the images that are queries; each query of the ground truth must be one.
            index_names: names of the images that are searched.

        Raises:
            ValueError: if an image that is named is not there, or a name stands for several.
        """
        find_query, find_image = NameTable(names, "queries"), NameTable(index_names, "index")
        try:
            places = [find_query(query) for query in self.queries]
            images = [
                {kind: [find_image(image) for image in names] for kind, names in kinds.items()}
                for kinds in self.queries.values()
            ]
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        return FoundGroundTruth(places, images, len(index_names), self.setups)


@dataclass(frozen=True)
class FoundGroundTruth:
    """
    Says which images each query should find, by place.

    Args:
        places: places of the queries among the images that are queries.
        images: kinds -> places of the images in the index, for each query.
        num_images: number of images in the index.
        setups: names of the setups that can be evaluated: one without a name, or easy, medium and hard.
    """

    places: list[int]
    images: list[dict[str, list[int]]]
    num_images: int
    setups: list[str]

    def masks(self, setup: str, queries: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns which images are positive and which ignored for some of the queries, (B, images) each, bool."""
        wanted, ignored = SETUPS[setup]
        return self._mask(queries, wanted), self._mask(queries, [*ignored, "ignored"])

    def _mask(self, queries: range, kinds: list[str]) -> torch.Tensor:
        mask = torch.zeros(len(queries), self.num_images, dtype=torch.bool)
        for row, query in enumerate(queries):
            for kind in kinds:
                mask[row, self.images[query].get(kind, [])] = True
        return mask


class NameTable:
    """
    Finds images by the ends of their paths.

    Args:
        what: what the images are, for messages.
    """

    def __init__(self, names: Sequence[str | int], what: str):
        self.names, self.what = list(map(str, names)), what
        self.places: dict[str, list[int]] = {}
        for place, name in enumerate(self.names):
            path = PurePath(name)
            for last in {path.name, path.stem}:
                self.places.setdefault(last, []).append(place)

    def __call__(self, name: str) -> int:
        """Returns the place of an image; raises ValueError if no image has this name, or several have."""
        end = f"/{PurePath(name).as_posix().lstrip('/')}"
        found = [place for place in self.places.get(PurePath(name).name, ()) if self._ends(place, end)]
        if not found:
            raise ValueError(f"no image of the {self.what} is called {name!r}")
        if len(found) > 1:
            first, second = (self.names[place] for place in found[:2])
            raise ValueError(f"{name!r} can be {first} or {second}: name them with their folders")
        return found[0]

    def _ends(self, place: int, end: str) -> bool:
        path = PurePath(self.names[place])
        return any(f"/{form.as_posix()}".endswith(end) for form in (path, path.with_suffix("")))


def read_ground_truth(file: str | os.PathLike) -> GroundTruth:
    """
    Reads a JSON file.

    Raises:
        ValueError: if the file holds something else.
        OSError: if it cannot be read.
    """
    path = Path(file)
    if path.suffix == ".pkl":
        raise ValueError(
            f"{path}: pickles are not read, JSON is: in Python help('{__name__}') shows its form, and how to convert "
            "a pickle"
        )
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    return GroundTruth(contents.get("queries") if isinstance(contents, dict) else None, str(path))
