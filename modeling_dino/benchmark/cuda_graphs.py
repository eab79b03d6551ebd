# SPDX-License-Identifier: Apache-2.0
"""Records what models compute as CUDA graphs, so that one image costs no launches of single operations."""

from collections.abc import Callable, Iterable

import torch


WARM_UP_CALLS = 3


def with_graphs(
    functions: dict[str, Callable[[], torch.Tensor]], names: Iterable[str], images: torch.Tensor
) -> tuple[dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """
    Returns the named functions of images as CUDA graphs, and why others cannot be recorded; none on a CPU.

    Args:
        functions: by name; they compute something of `images` without gradients.
    """
    graphs, left_out = {}, {}
    for name in names if images.is_cuda else ():
        try:
            graphs[f"{name} graph"] = as_graph(functions[name], images)
        except RuntimeError as error:  # of an operation that a graph cannot have
            left_out[f"{name} graph"] = str(error).splitlines()[0]
    return graphs, left_out


def as_graph(function: Callable[[], torch.Tensor], images: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Records a function after some calls; returns one that copies images to the place of these, and replays it."""
    new_images, stream, graph = images.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        output = function()

    def replay() -> torch.Tensor:
        images.copy_(new_images)
        graph.replay()
        return output

    return replay


def without_eager(rivals: Iterable[str]) -> list[str]:
    """Returns the names of rivals without those that differ from another by slower attention alone."""
    names = list(rivals)
    return [name for name in names if not (name.endswith(" eager") and name.replace(" eager", " sdpa") in names)]
