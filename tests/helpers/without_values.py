"""Tensors without values, as a GPU's are to the process that queues its work: who asks for a value, has to wait.

PyTorch's fake tensors refuse all operations whose result depends on values: `item`, `tolist`, `nonzero`, indexing by
booleans, `if tensor`. They do not tell what copies numbers to the device, which waits, too; that is told by the
functions that are called.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from modeling_dino.modeling_dino import DinoPreTrainedModel


# what makes a tensor of Python's numbers, on the CPU, and then copies it
COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
COPIES |= {torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.numpy, torch.Tensor.tolist}


class NoCopies(TorchFunctionMode):
    """Refuses what copies numbers between a process and its device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in COPIES:
            raise AssertionError(f"{function.__name__} waits for the device")
        return function(*args, **(kwargs or {}))


def forget_values(model: nn.Module) -> FakeTensorMode:
    """Replaces all parameters and buffers by tensors without values; returns the mode in which the model computes."""
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    for module in model.modules():
        if isinstance(module, DinoPreTrainedModel):
            module._checked_range = True  # the values of the first batch are looked at, which waits once
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    return mode


@contextmanager
def without_values(mode: FakeTensorMode) -> Iterator[None]:
    """A context in which whatever waits for the device fails."""
    with mode, NoCopies():
        yield
