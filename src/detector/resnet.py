"""ResNet with bottleneck blocks and frozen batch norm, under the parameter names of detectron2.

The stride of a stage is on the first 1x1 convolution of its first block, as in Caffe; torchvision has it on the 3x3 one.
"""

import torch
from torch import nn
from torch.nn import functional


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics, weight and bias; all four are buffers and are never trained."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (('weight', 1.), ('bias', 0.), ('running_mean', 0.), ('running_var', 1.)):
            self.register_buffer(name, torch.full((channels,), value))

    def scale_and_shift(self):
        """The norm as a linear function of its input: (c,) each."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x):  # (b, c, h, w)
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


class ConvNorm(nn.Conv2d):
    """A convolution, padded so that only its stride changes the size, followed by a frozen batch norm."""

    def __init__(self, inputs, outputs, kernel, stride=1, dilation=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 * dilation, dilation, bias=False)
        self.norm = FrozenBatchNorm(outputs)

    def forward(self, x):
        return self.norm(super().forward(x))

    def fold(self):
        """Folds the norm into weight and bias. The same function, computed faster, under other parameter names."""
        scale, shift = self.norm.scale_and_shift()
        self.weight = nn.Parameter(self.weight.detach() * scale[:, None, None, None], requires_grad=False)
        self.bias, self.norm = nn.Parameter(shift, requires_grad=False), nn.Identity()


class Stem(nn.Module):
    """(b, 3, h, w) -> (b, width, about h / 4, about w / 4)"""

    def __init__(self, width):
        super().__init__()
        self.conv1 = ConvNorm(3, width, 7, stride=2)

    def forward(self, x):
        return functional.max_pool2d(self.conv1(x).relu_(), 3, 2, ceil_mode=True)  # without padding, as in Caffe


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions; `inner` channels between them, 4 * inner at the end."""

    def __init__(self, inputs, inner, stride=1, dilation=1):
        super().__init__()
        self.shortcut = ConvNorm(inputs, 4 * inner, 1, stride) if inputs != 4 * inner else nn.Identity()
        self.conv1 = ConvNorm(inputs, inner, 1, stride)
        self.conv2 = ConvNorm(inner, inner, 3, dilation=dilation)
        self.conv3 = ConvNorm(inner, 4 * inner, 1)

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x).relu_()).relu_()).add_(self.shortcut(x)).relu_()


def stage(inputs, inner, blocks, stride, dilation=1):
    """A stack of bottlenecks; the first one has the stride, all have the dilation (in their 3x3 convolution)."""
    first = Bottleneck(inputs, inner, stride, dilation)
    return nn.Sequential(first, *(Bottleneck(4 * inner, inner, dilation=dilation) for _ in range(blocks - 1)))


class ResNetC4(nn.Sequential):
    """ResNet up to its fourth stage: (b, 3, h, w) -> (b, 16 width, about h / 16, about w / 16).

    width: channels of the stem; blocks: of the stages 2, 3 and 4, (3, 4, 23) in a ResNet-101.
    """

    def __init__(self, width, blocks):
        super().__init__()
        self.stem = Stem(width)
        self.res2 = stage(width, width, blocks[0], 1)
        self.res3 = stage(4 * width, 2 * width, blocks[1], 2)
        self.res4 = stage(8 * width, 4 * width, blocks[2], 2)
