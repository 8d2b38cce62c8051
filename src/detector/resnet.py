"""ResNet with bottleneck blocks and frozen batch norm, under the parameter names of detectron2, for the detector and for VL-BERT.

The stride of a stage is on the first 1x1 convolution of its first block, as in Caffe; torchvision has it on the 3x3 one.
"""

import re

import torch
from torch import nn
from torch.nn import functional

# Parameter names here, and under which torchvision has the same.
TORCHVISION = ((r'\bstem\.', ''), (r'\bres(\d)\b', lambda match: f'layer{int(match[1]) - 1}'), (r'\bconv(\d)\.norm\b', r'bn\1'),
               (r'\bshortcut\.norm\b', 'downsample.1'), (r'\bshortcut\b', 'downsample.0'))


def torchvision_name(name):
    """The name that torchvision has for a parameter."""
    for pattern, replacement in TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return name


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics. Weight and bias are buffers too, unless `unfreeze` makes them parameters."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (('weight', 1.), ('bias', 0.), ('running_mean', 0.), ('running_var', 1.)):
            self.register_buffer(name, torch.full((channels,), value))

    def unfreeze(self):
        for name in ('weight', 'bias'):
            self.register_parameter(name, nn.Parameter(self._buffers.pop(name)))

    def scale_and_shift(self):
        """The norm as a linear function of its input: (c,) each."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Conv2d):
    """A convolution, padded so that only its stride changes the size, followed by a frozen batch norm."""

    def __init__(self, inputs, outputs, kernel, stride=1, dilation=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 * dilation, dilation, bias=False)
        self.norm = FrozenBatchNorm(outputs)

    def forward(self, x):
        # The norm is applied to the weights, of which there are fewer than results; gradients are the same.
        weight, bias = (self.weight, self.bias) if self.norm is None else self.folded()
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def folded(self):
        """(weight, bias) of the convolution with the norm."""
        scale, shift = self.norm.scale_and_shift()
        return self.weight * scale[:, None, None, None], shift

    def fold(self):
        """Folds the norm into weight and bias for good. The same function under other parameter names; nothing is trained."""
        weight, bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in self.folded())
        self.weight, self.bias, self.norm = weight, bias, None


class Stem(nn.Module):
    """(b, 3, h, w) -> (b, width, about h / 4, about w / 4). caffe: its pooling, without padding; else torchvision's."""

    def __init__(self, width, caffe=True):
        super().__init__()
        self.conv1, self.caffe = ConvNorm(3, width, 7, stride=2), caffe

    def forward(self, x):
        return functional.max_pool2d(self.conv1(x).relu_(), 3, 2, 0 if self.caffe else 1, ceil_mode=self.caffe)


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

    width: channels of the stem; blocks: of the stages 2, 3 and 4, (3, 4, 23) in a ResNet-101; caffe: as of Stem.
    """

    def __init__(self, width, blocks, caffe=True):
        super().__init__()
        self.stem = Stem(width, caffe)
        self.res2 = stage(width, width, blocks[0], 1)
        self.res3 = stage(4 * width, 2 * width, blocks[1], 2)
        self.res4 = stage(8 * width, 4 * width, blocks[2], 2)
