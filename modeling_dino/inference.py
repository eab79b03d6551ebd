# SPDX-License-Identifier: Apache-2.0
"""Backbones that are faster and cannot be trained: what `model.prepare_for_inference()` makes of them.

The plain classes in `vision_transformer.py`, `block_parts.py` and `resnet.py` define what is computed, and tests
compare with them; the classes here compute the same with fewer passes over memory. Parameters, buffers and their names
stay as they are, and so does what is saved: only the classes of modules change. What is derived from weights is kept
beside them, and made anew when they change.

- ViT: GELU, SwiGLU, layer scale and residuals are written over their inputs: memory that is allocated and given back
  costs page faults, up to a tenth of the time on a CPU. There, linears run with weights packed by MKL. Interpolated
  positions are kept by the size of the image.
- ResNet: batch norms are folded into the convolutions, which run in channels_last, on CPUs with packed weights and
  with ReLU and residual applied while the output is still in the cache (oneDNN).

A module is changed only if its class and its parts are exactly those that the faster class computes. All others stay
plain: subclasses, modules with other parts, and backbones that are not in `FASTER`. A module whose parts are replaced
later, by adapters for example, computes as the plain class again. So do all modules under `torch.compile`, which
packs, folds and fuses as well, and whenever operations are recorded.

Letters in shapes: B images, C channels, H x W pixels, T tokens, D width.
"""

from itertools import pairwise

import torch
from torch import nn

from .backbone import is_recorded
from .block_parts import DropPath, LayerScale, Mlp, SwiGlu
from .convnext import ConvNeXt
from .resnet import BasicBlock, Bottleneck, ResidualBlock, ResNet, ResNetStage
from .vision_transformer import Attention, Block, LinearWithoutKeyBias, VisionTransformer
from .xcit import Xcit


# Packing takes as long as fifty rows do. What is packed must not depend on what was seen before, as last bits do.
PACKED_ROWS = 1024


def fingerprint(*tensors: torch.Tensor) -> tuple:
    """Returns what changes when a tensor is replaced, moved, or written to (except through `.data`)."""
    return tuple((x.data_ptr(), x.device, x.dtype, 0 if x.is_inference() else x._version) for x in tensors)


def newest(packed: dict, key, value, kept: int = 1) -> dict:
    """Adds an entry and keeps as many more: whole batches need one, and what is left over at the end another."""
    return dict([*list(packed.items())[-kept:], (key, value)])


Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


def is_exactly(module: nn.Module, kinds: Kinds) -> bool:
    """Returns whether a module is of a plain class or of its faster one, and of no subclass."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return type(module) in (*kinds, *map(FASTER.get, kinds))


def can_be_left_out(module: nn.Module, kind: Kinds) -> bool:
    """Returns whether others can compute what this class does in the module's place: nothing hooks into it."""
    has_hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return is_exactly(module, kind) and not has_hooks


class Faster:
    """
    A faster class for a module, which computes what the plain class does for the parts that it was prepared with.

    Attributes:
        called: classes of the parts that are called, by their names; None allows any parts.
        left_out: classes of the parts that are not called, since what they compute is known.
    """

    called: dict[str, Kinds] | None = None
    left_out: dict[str, Kinds] = {}

    @classmethod
    def knows(cls, plain: nn.Module) -> bool:
        """Returns whether a module of the plain class has exactly the parts that this class computes."""
        if cls.called is None:
            return True
        parts = plain._modules
        return (
            parts.keys() == cls.called.keys() | cls.left_out.keys()
            and all(is_exactly(parts[name], kind) for name, kind in cls.called.items())
            and all(can_be_left_out(parts[name], kind) for name, kind in cls.left_out.items())
        )

    def prepare(self):
        """Remembers the parts, after the class has been set."""
        self._prepared_parts = self.parts()

    def parts(self) -> list[nn.Module]:
        """Returns the modules that must stay the same objects."""
        return list(self._modules.values())

    def is_as_prepared(self) -> bool:
        """Returns whether the faster way can be taken."""
        return not is_recorded() and self.parts() == self._prepared_parts


class InferenceLinear(Faster, nn.Linear):
    """A linear that on CPUs, in float32 and for many rows runs with weights packed by MKL."""

    def prepare(self):
        self._packed: dict[tuple, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        """Leaves out what MKL has packed, which cannot be copied."""
        return {**self.__dict__, "_packed": {}}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if is_recorded() or not self._suits_mkl(x):
            return nn.functional.linear(x, self.weight, self.used_bias())
        rows = x[..., 0].numel()
        return torch.ops.mkl._mkl_linear(x, self._pack(rows), self.weight, self.used_bias(), rows)

    def used_bias(self) -> torch.Tensor | None:
        """Returns what is added to the product."""
        return self.bias

    def _suits_mkl(self, x: torch.Tensor) -> bool:
        is_float32_on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        is_as_usual = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        is_large = x[..., 0].numel() >= PACKED_ROWS
        return is_float32_on_cpu and is_as_usual and is_large and torch.backends.mkl.is_available()

    def _pack(self, rows: int) -> torch.Tensor:
        """Returns the weights in the order that suits so many rows."""
        key = rows, fingerprint(self.weight)
        if (packed := self._packed.get(key)) is None:
            packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, rows)
            self._packed = newest(self._packed, key, packed)
        return packed


class InferenceLinearWithoutKeyBias(InferenceLinear, LinearWithoutKeyBias):
    """A linear for query, key and value that has packed weights and adds no bias to the key."""

    used_bias = LinearWithoutKeyBias.used_bias


class InferenceAttention(Faster, Attention):
    """Attention that reads the weights of its linears, whichever class they have."""

    linears = (*Attention.linears, InferenceLinear, InferenceLinearWithoutKeyBias)


class InferenceMlp(Faster, Mlp):
    """An MLP with GELU in place."""

    called = {"fc1": nn.Linear, "fc2": nn.Linear}
    left_out = {"act": nn.GELU, "drop": nn.Dropout}

    @classmethod
    def knows(cls, plain: Mlp) -> bool:
        return super().knows(plain) and plain.act.approximate == "none"

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.is_as_prepared():
            return super().forward(hidden_states)
        return self.fc2(torch.ops.aten.gelu_(self.fc1(hidden_states)))


class InferenceSwiGlu(Faster, SwiGlu):
    """SwiGLU with gates and their product in place."""

    called = {"w1": nn.Linear, "w2": nn.Linear, "w3": nn.Linear}

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.is_as_prepared():
            return super().forward(hidden_states)
        gates = nn.functional.silu(self.w1(hidden_states), inplace=True)
        return self.w3(gates.mul_(self.w2(hidden_states)))


NORMS = (nn.LayerNorm, nn.RMSNorm)
LAYER_SCALES = (nn.Identity, LayerScale)


def scale_(hidden_states: torch.Tensor, scale: nn.Module) -> torch.Tensor:
    """Applies a layer scale in place, or nothing where there is none."""
    return hidden_states.mul_(scale.gamma) if isinstance(scale, LayerScale) else hidden_states


class InferenceBlock(Faster, Block):
    """A block with residuals in place."""

    called = {"norm1": NORMS, "attn": Attention, "norm2": NORMS, "mlp": (Mlp, SwiGlu)}
    left_out = {"ls1": LAYER_SCALES, "ls2": LAYER_SCALES, "drop_path": DropPath}

    def forward(self, hidden_states: torch.Tensor, cls_only: bool = False, **kwargs) -> torch.Tensor:
        if not self.is_as_prepared():
            return super().forward(hidden_states, cls_only=cls_only, **kwargs)
        attended, _ = self.attn(self.norm1(hidden_states), cls_only=cls_only, **kwargs)
        hidden_states = scale_(attended, self.ls1).add_(hidden_states[:, :1] if cls_only else hidden_states)
        return scale_(self.mlp(self.norm2(hidden_states)), self.ls2).add_(hidden_states)


class InferenceBackbone(Faster):
    """A backbone without gradients, which refuses training."""

    @torch.no_grad()
    def forward(self, *args, **kwargs) -> torch.Tensor | list[torch.Tensor]:
        return super().forward(*args, **kwargs)

    def train(self, mode: bool = True):
        """Raises ValueError for train mode."""
        if mode:
            raise ValueError("the model is prepared for inference: load it again to train it")
        return super().train(mode)


class InferenceVisionTransformer(InferenceBackbone, VisionTransformer):
    """A ViT whose positions are interpolated once for each of the last four sizes: an image has several scales."""

    def prepare(self):
        self._positions = {}

    def positions(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        if self.pos_embed is None or is_recorded() or pixel_values.is_meta:
            return super().positions(pixel_values)
        size, now = tuple(pixel_values.shape[-2:]), fingerprint(self.pos_embed)
        then, positions = self._positions.get(size, (None, None))
        if then != now:
            positions = super().positions(pixel_values)
            self._positions = newest(self._positions, size, (now, positions), kept=3)
        return positions


def can_be_folded(conv: nn.Module, norm: nn.Module) -> bool:
    """Returns whether a convolution and the norm after it can be computed as one, by what is known of both."""
    return (
        can_be_left_out(conv, nn.Conv2d)
        and can_be_left_out(norm, nn.BatchNorm2d)
        and (conv.bias, conv.groups, conv.dilation, conv.padding_mode) == (None, 1, (1, 1), "zeros")
        and isinstance(conv.padding, tuple)
        and norm.weight is not None
        and norm.running_mean is not None
    )


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
        """Folds in float64, so that only the result is rounded."""
        norm, weight = self.norm, self.conv.weight
        self.folded_from = self._fingerprint()
        scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        self.bias = (norm.bias.double() - norm.running_mean.double() * scale).to(weight.dtype)
        self.weight = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self.packed: dict[torch.Size, torch.Tensor] = {}

    def __getstate__(self) -> dict:
        """Leaves out what oneDNN has packed, which cannot be copied."""
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
        """Returns the weights in the order for images of this shape, on which the time depends up to tenfold."""
        if (packed := self.packed.get(shape)) is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, shape)
            self.packed = newest(self.packed, shape, packed)
        return packed


class InferenceResidualBlock(Faster, ResidualBlock):
    """A residual block of folded convolutions, of which the last adds the residual."""

    overwrites_input = False

    @classmethod
    def knows(cls, plain: ResidualBlock) -> bool:
        pairs, downsample = plain.convolutions(), plain.downsample
        parts = {plain.relu, *(part for pair in pairs for part in pair)}
        if downsample is not None:
            if not can_be_left_out(downsample, nn.Sequential) or len(downsample) != 2:
                return False
            parts, pairs = parts | {downsample}, [*pairs, tuple(downsample)]
        is_complete = parts == set(plain._modules.values())
        return is_complete and can_be_left_out(plain.relu, nn.ReLU) and all(can_be_folded(*pair) for pair in pairs)

    def prepare(self):
        super().prepare()
        self._convolutions = [FoldedConvolution(*pair) for pair in self.convolutions()]
        self._projection = self.downsample and FoldedConvolution(*self.downsample)

    def parts(self) -> list[nn.Module]:
        return [*super().parts(), *getattr(self.downsample, "_modules", {}).values()]

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if not self.is_as_prepared():
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
    """A folded block of two convolutions."""


class InferenceBottleneck(InferenceResidualBlock, Bottleneck):
    """A folded block of three convolutions."""


class InferenceResNet(InferenceBackbone, ResNet):
    """A ResNet in channels_last with a folded stem."""

    def prepare(self):
        super().prepare()
        is_known = can_be_folded(self.conv1, self.bn1) and can_be_left_out(self.relu, nn.ReLU)
        self._stem = FoldedConvolution(self.conv1, self.bn1) if is_known else None
        for stage in self.children():
            for before, block in pairwise(stage if isinstance(stage, ResNetStage) else ()):
                # nobody else has what a block hands to the next; a stage's input may be somebody's hidden state
                block.overwrites_input = isinstance(before, InferenceResidualBlock)

    def parts(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.relu]

    def stem(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self._stem is None or not self.is_as_prepared():
            return super().stem(pixel_values)
        return self.maxpool(self._stem(pixel_values.contiguous(memory_format=torch.channels_last)))


class InferenceConvNeXt(InferenceBackbone, ConvNeXt):
    """A ConvNeXt whose linears have packed weights."""


class InferenceXcit(InferenceBackbone, Xcit):
    """An XCiT whose linears have packed weights, with GELU in place."""


FASTER: dict[type[nn.Module], type[Faster]] = {
    nn.Linear: InferenceLinear,
    LinearWithoutKeyBias: InferenceLinearWithoutKeyBias,
    SwiGlu: InferenceSwiGlu,
    Attention: InferenceAttention,
    Mlp: InferenceMlp,
    Block: InferenceBlock,
    VisionTransformer: InferenceVisionTransformer,
    BasicBlock: InferenceBasicBlock,
    Bottleneck: InferenceBottleneck,
    ResNet: InferenceResNet,
    ConvNeXt: InferenceConvNeXt,
    Xcit: InferenceXcit,
}


def prepare_for_inference(backbone: nn.Module):
    """Gives the modules of a backbone their faster classes, in place; one of an unknown class stays as it is."""
    if type(backbone) in FASTER:
        for module in reversed([*backbone.modules()]):  # parts before what is made of them
            faster = FASTER.get(type(module))
            if faster is not None and faster.knows(module):
                module.__class__ = faster
                module.prepare()
    backbone.eval()
