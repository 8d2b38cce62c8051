"""The image encoder: a vision transformer (Dosovitskiy et al., 2021), under the parameter names of timm.

Shapes: m images, v = 1 + (side / patch)^2 tokens of an image, [CLS] first, then patches row by row; h heads; d width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert.layers import EAGER_ATTENTION, LayerStack


def interpolate(positions, tokens):
    """Position embeddings (1, 1 + s * s, d) of another number of tokens: bicubic over the grid, [CLS] as it is."""
    side, new = (round((count - 1) ** 0.5) for count in (positions.shape[1], tokens))
    first, grid = positions[:, :1], positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, d, s, s)
    grid = F.interpolate(grid.float(), (new, new), mode='bicubic', align_corners=False).to(positions.dtype)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], 1)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, attentions=None):
        """(m, v, d) -> (m, v, d). attentions: a list, to which the probabilities (m, h, v, v) are appended."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (m, h, v, d/h)
        if attentions is None and (x.device.type not in EAGER_ATTENTION or not query.requires_grad):
            output = F.scaled_dot_product_attention(query, key, value)
        else:
            probabilities = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)
            if attentions is not None:
                attentions.append(probabilities)
            output = probabilities @ value
        return self.proj(output.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), MLP(width)

    def forward(self, x, attentions=None):
        x = x + self.attn(self.norm1(x), attentions)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.proj = nn.Conv2d(3, config.vision_width, config.patch_size, config.patch_size)

    def forward(self, pixels):
        return self.proj(pixels).flatten(2).transpose(1, 2)  # (m, v - 1, d)


class VisionTransformer(LayerStack):
    compile_as_one_graph = True  # read by bert.speed

    def __init__(self, config):
        super().__init__()
        self.side, width = config.image_res, config.vision_width
        tokens = 1 + (config.image_res // config.patch_size) ** 2
        self.cls_token, self.pos_embed = (nn.Parameter(torch.zeros(1, size, width)) for size in (1, tokens))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(width, config.vision_heads) for _ in range(config.vision_depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for weight in (self.cls_token, self.pos_embed, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.zeros_(layer.bias)

    def forward(self, pixels, attentions=None):
        """Normalised pixels (m, 3, side, side) -> tokens (m, v, d). attentions: as of Attention.forward, from the first block
        on."""
        if pixels.shape[1:] != (3, self.side, self.side):
            raise ValueError(f'pixels: expected (images, 3, {self.side}, {self.side}), found {tuple(pixels.shape)}; image_res of '
                             'the config is the side in pixels')
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = self.run(block, x, attentions=attentions)
        return self.norm(x)
