"""Causal Perceiver IO: per frame, latent queries read the tokens of that frame and of earlier ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig


def causal_bias(queries: int, keys: int, frames: int, heads: int, device: torch.device) -> Tensor:
    """Additive attention mask [heads, frames*queries, frames*keys] for blocks of tokens, one block a frame.

    Later frames are -inf; earlier ones fade linearly with their age, each head at its own rate (Press et al. 2022,
    ALiBi), the first head not at all. Only ages count, so a model trained on T frames filters longer sequences.
    """
    time = torch.arange(frames, device=device, dtype=torch.float32)
    age = time[:, None] - time[None, :]
    slopes = torch.cat([age.new_zeros(1), 2.0 ** torch.linspace(2, -4, heads, device=device)[:-1]])
    bias = (-slopes[:, None, None] * age).masked_fill(age < 0, float("-inf"))
    return bias.repeat_interleave(queries, 1).repeat_interleave(keys, 2)


class Attention(nn.Module):
    """Multi-head attention of `x` over `source`, pre-normalised, with a residual feed-forward layer.

    Keys and values have no biases: the softmax does not see the one, and the read-out's own stands for the other. They
    are two maps because one would copy both gradients side by side.
    """

    def __init__(self, dim: int, heads: int, source_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(source_dim or dim, dim, bias=False)
        self.value = nn.Linear(source_dim or dim, dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor, source: Tensor | None, bias: Tensor) -> Tensor:
        """x [B, N, dim], source [B, M, source_dim] (None: the normalised x), bias [heads, N, M] -> [B, N, dim]."""
        normed = self.query_norm(x)
        source = normed if source is None else source
        maps = (self.query(normed), self.key(source), self.value(source))
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in maps)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x)


class CausalPerceiver(nn.Module):
    """Tokens of T frames -> context c [B, T, C] that knows frames <= t, and logits of the next frame's tokens.

    A linear map of the frame's own codes joins the pooled read-out: at first attention averages over cells that hardly
    differ between frames, and without it c stays the same for all frames (docs/log.md).
    """

    compiled = ("forward", "next_frame_logits")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, cells = config.perceiver_dim, config.grid**2
        self.heads, self.latents = config.perceiver_heads, config.perceiver_latents
        self.position = nn.Parameter(torch.randn(cells, config.code_dim) * 0.5)
        self.latent = nn.Parameter(torch.randn(self.latents, dim))
        self.read = Attention(dim, self.heads, config.code_dim)
        self.layers = nn.ModuleList(Attention(dim, self.heads) for _ in range(config.perceiver_layers))
        self.pool = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.context_dim))
        self.glance = nn.Linear(cells * config.code_dim, config.context_dim, bias=False)
        self.context_norm = nn.LayerNorm(config.context_dim)
        self.next_context = nn.Linear(config.context_dim, dim)
        self.next_position = nn.Parameter(torch.randn(cells, dim))
        self.next_token = nn.Sequential(nn.SiLU(), nn.LayerNorm(dim), nn.Linear(dim, config.num_codes))

    def forward(self, codes: Tensor) -> Tensor:
        """Context c [B, T, C] of codes [B, T, P, d]."""
        batch, frames, cells, _ = codes.shape
        tokens = (codes + self.position).flatten(1, 2)
        x = self.latent.repeat(frames, 1).expand(batch, -1, -1)
        x = self.read(x, tokens, causal_bias(self.latents, cells, frames, self.heads, codes.device))
        bias = causal_bias(self.latents, self.latents, frames, self.heads, codes.device)
        for layer in self.layers:
            x = layer(x, None, bias)
        pooled = self.pool(x).float().unflatten(1, (frames, self.latents)).mean(2)
        return self.context_norm(pooled + self.glance(codes.flatten(2)).float())

    def next_frame_logits(self, context: Tensor) -> Tensor:
        """Logits [B, T, P, num_codes] of the tokens of frame t+1, from c_t [B, T, C] alone."""
        return self.next_token(self.next_context(context)[:, :, None] + self.next_position).float()
