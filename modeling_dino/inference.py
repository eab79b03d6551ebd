# SPDX-License-Identifier: Apache-2.0
"""Backbones that are faster and cannot be trained: what `model.prepare_for_inference()` makes of them.

The plain versions in `vision_transformer.py` and `resnet.py` say what is computed, and tests compare with them; here
it is computed with fewer passes over memory. Parameters, buffers and their names stay as they are, so what is saved
does too: only the classes of the modules change, and what is derived from the weights is kept beside them, and made
anew where they have changed.

- ViT: GELU and residuals are written over their inputs: memory that is allocated and given back costs page faults, up
  to a tenth of the time on a CPU. There, linears run with weights packed by MKL. Interpolated positions are kept by
  the size of the image.
- ResNet: batch norms are folded into the convolutions, which run in channels_last, on CPUs with packed weights and
  with ReLU and residual applied while the output is still in the cache (oneDNN).

Under `torch.compile` linears and residual blocks are the plain ones: it packs, folds and fuses as well.

Letters in shapes: B images, C channels, H x W pixels, T tokens, D width.
"""

import torch
from torch import nn

from .resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet
from .vision_transformer import Attention, Block, Mlp, VisionTransformer


# Packing takes as long as fifty rows do. What is packed must not depend on what was seen before, as last bits do.
PACKED_ROWS = 1024


def fingerprint(*tensors: torch.Tensor) -> tuple:
    """What changes when a tensor is replaced, moved, or written to (but through `.data`)."""
    return tuple((x.data_ptr(), x.device, x.dtype, 0 if x.is_inference() else x._version) for x in tensors)


class InferenceOnly:
    """A module that refuses training."""

    def train(self, mode: bool = True):
        """
        Raises:
            ValueError: if it is train mode.
        """
        if mode:
            raise ValueError("the model is prepared for inference: load it again to train it")
        return super().train(mode)


def newest(packed: dict, key, value) -> dict:
    """What is kept beside the weights: for whole batches, and for what is left over at the end."""
    return dict([*list(packed.items())[-1:], (key, value)])


class InferenceLinear(nn.Linear):
    """On CPUs, in float32, with weights packed by MKL where there are many rows."""

    def prepare(self):
        """After the class has been set."""
        self._packed: dict[tuple, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        """For copies; what MKL has packed cannot be copied."""
        return {**self.__dict__, "_packed": {}}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not self._suits_mkl(x):
            return super().forward(x)
        rows = x[..., 0].numel()
        return torch.ops.mkl._mkl_linear(x, self._pack(rows), self.weight, self.bias, rows)

    def _suits_mkl(self, x: torch.Tensor) -> bool:
        is_float32_on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        is_as_usual = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        is_large = x[..., 0].numel() >= PACKED_ROWS
        return is_float32_on_cpu and is_as_usual and is_large and torch.backends.mkl.is_available()

    def _pack(self, rows: int) -> torch.Tensor:
        """The weights in the order that suits so many rows."""
        key = rows, fingerprint(self.weight)
        if (packed := self._packed.get(key)) is None:
            packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
            self._packed = newest(self._packed, key, packed)
        return packed


class InferenceAttention(Attention):
    """As its plain version, which reads the weights of its linears."""

    linears = (nn.Linear, InferenceLinear)


class InferenceMlp(Mlp):
    """GELU in place."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.ops.aten.gelu_(self.fc1(hidden_states)))


class InferenceBlock(Block):
    """Residuals in place."""

    def forward(self, hidden_states: torch.Tensor, cls_only: bool = False, **kwargs) -> torch.Tensor:
        attended, _ = self.attn(self.norm1(hidden_states), cls_only=cls_only, **kwargs)
        hidden_states = attended.add_(hidden_states[:, :1] if cls_only else hidden_states)
        return self.mlp(self.norm2(hidden_states)).add_(hidden_states)


class InferenceVisionTransformer(InferenceOnly, VisionTransformer):
    """Without gradients, and with positions that are interpolated once a size."""

    def prepare(self):
        """After the class has been set."""
        self._positions = {}

    @torch.no_grad()
    def forward(self, *args, **kwargs) -> torch.Tensor | list[torch.Tensor]:
        return super().forward(*args, **kwargs)

    def positions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or pixel_values.is_meta:
            return super().positions(pixel_values)
        size, now = tuple(pixel_values.shape[-2:]), fingerprint(self.pos_embed)
        if self._positions.get(size, (None, None))[0] != now:
            self._positions[size] = now, super().positions(pixel_values)
        return self._positions[size][1]


class FoldedConvolution:
    """A convolution with the batch norm after it, as one; on CPUs, in float32, with weights packed by oneDNN."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d):
        self.conv, self.norm = conv, norm
        self.padding, self.stride = conv.padding, conv.stride
        self.fold()

    def _fingerprint(self) -> tuple:
        norm = self.norm
        return fingerprint(self.conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)

    @torch.no_grad()
    def fold(self):
        """In float64, so that only the result is rounded."""
        norm, weight = self.norm, self.conv.weight
        self.folded_from = self._fingerprint()
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        self.bias = (norm.bias.double() - norm.running_mean.double() * scale).to(weight.dtype)
        self.weight = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.packed: dict[torch.Size, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        """For copies; what oneDNN has packed cannot be copied."""
        return {**self.__dict__, "packed": {}}

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None = None, has_relu: bool = True) -> torch.Tensor:
        """(B, C, H, W) -> (B, out channels, h, w), in channels_last; a residual is written over."""
        if self.folded_from != self._fingerprint():
            self.fold()
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            return self._by_onednn(x, residual, has_relu)
        out = nn.functional.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        out = out if residual is None else out.add_(residual)
        return out.relu_() if has_relu else out

    def _by_onednn(self, x: torch.Tensor, residual: torch.Tensor | None, has_relu: bool) -> torch.Tensor:
        geometry = self.padding, self.stride, (1, 1), 1  # no dilation, one group
        operands = (x, self._pack(x.shape, *geometry), self.bias, *geometry)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(*operands, "relu" if has_relu else "none", [], "")
        relu = "relu" if has_relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(residual, *operands, "add", None, relu, [], None)

    def _pack(self, shape: torch.Size, *geometry) -> torch.Tensor:
        """The weights in the order that suits images of this shape, on which the time depends up to tenfold."""
        if (packed := self.packed.get(shape)) is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, shape)
            self.packed = newest(self.packed, shape, packed)
        return packed


class InferenceResidualBlock(ResidualBlock):
    """Folded convolutions, of which the last adds the residual."""

    overwrites_input = False

    def prepare(self):
        """After the class has been set."""
        pairs = [(conv, getattr(self, f"bn{i}")) for i in (1, 2, 3) if (conv := getattr(self, f"conv{i}", None))]
        self._convolutions = [FoldedConvolution(*pair) for pair in pairs]
        self._projection = self.downsample and FoldedConvolution(*self.downsample)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().forward(hidden_states)
        if self._projection:
            residual = self._projection(hidden_states, has_relu=False)
        else:
            residual = hidden_states if self.overwrites_input else hidden_states.clone()
        *convolutions, last = self._convolutions
        for convolution in convolutions:
            hidden_states = convolution(hidden_states)
        return last(hidden_states, residual)


class InferenceBasicBlock(InferenceResidualBlock, BasicBlock):
    """As its plain version."""


class InferenceBottleneck(InferenceResidualBlock, Bottleneck):
    """As its plain version."""


class InferenceResNet(InferenceOnly, ResNet):
    """Without gradients, in channels_last."""

    def prepare(self):
        """After the class has been set."""
        self._stem = FoldedConvolution(self.conv1, self.bn1)
        for i in range(1, len(self.stage_channels)):
            for block in list(getattr(self, f"layer{i}"))[1:]:
                block.overwrites_input = True  # nobody else has it; a stage's input may be somebody's hidden state

    def stem(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().stem(pixel_values)
        return self.maxpool(self._stem(pixel_values.contiguous(memory_format=torch.channels_last)))

    @torch.no_grad()
    def forward(self, *args, **kwargs) -> torch.Tensor | list[torch.Tensor]:
        return super().forward(*args, **kwargs)


PREPARED = {
    nn.Linear: InferenceLinear,
    Attention: InferenceAttention,
    Mlp: InferenceMlp,
    Block: InferenceBlock,
    VisionTransformer: InferenceVisionTransformer,
    BasicBlock: InferenceBasicBlock,
    Bottleneck: InferenceBottleneck,
    ResNet: InferenceResNet,
}


def prepare_for_inference(backbone: nn.Module):
    """Makes a backbone, in place, one for inference alone; one that is so already stays as it is."""
    for module in [*backbone.modules()]:
        if type(module) in PREPARED:
            module.__class__ = PREPARED[type(module)]
            if hasattr(module, "prepare"):
                module.prepare()
    backbone.eval()


__all__ = ["prepare_for_inference"]
