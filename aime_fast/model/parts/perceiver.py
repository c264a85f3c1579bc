"""Causal Perceiver IO: per frame, latent queries read the tokens of that frame and of earlier ones."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aime_fast.config import ModelConfig
from aime_fast.model.parts.layers import joined, wide

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of an attention layer, each [B, M, dim]."""
Masks = tuple[Tensor, Tensor]
"""`causal_bias` of the read-in and of the self-attention layers."""


@dataclass(frozen=True)
class PerceiverMemory:
    """The keys and values of all observed frames (a KV cache): a new frame attends to them without recomputing them."""

    frames: int = 0  # Observed frames; a layer has as many keys for each
    layers: tuple[KeyValue, ...] = ()
    """Of the read-in and of each self-attention layer, [B, frames * n, dim]; empty before the first frame."""

    def until(self, frames: int) -> "PerceiverMemory":
        """The memory of the first `frames` frames."""
        cut = [tuple(x[:, : x.shape[1] // self.frames * frames] for x in layer) for layer in self.layers]
        return PerceiverMemory(frames, tuple((keys, values) for keys, values in cut))


def causal_bias(queries: int, keys: int, past: int, frames: int, heads: int, device: torch.device) -> Tensor:
    """Additive attention mask [heads, frames*queries, (past+frames)*keys] for blocks of tokens, one block a frame.

    The queries are those of `frames` frames that follow `past` others. Later frames are -inf; the scores of earlier
    frames fall linearly with age, each head at its own rate (ALiBi, Press et al. 2022), the first head not at all. Only
    ages count, so a model trained on T frames can filter longer sequences.
    """
    time = torch.arange(past + frames, device=device, dtype=torch.float32)
    age = time[past:, None] - time[None, :]
    slopes = torch.cat([age.new_zeros(1), 2.0 ** torch.linspace(2, -4, heads, device=device)[:-1]])
    bias = (-slopes[:, None, None] * age).masked_fill(age < 0, float("-inf"))
    return bias.repeat_interleave(queries, 1).repeat_interleave(keys, 2)


class Attention(nn.Module):
    """Multi-head attention of `x` over `source`, pre-normalised, with a residual feed-forward layer.

    Keys and values have no biases: the softmax ignores a key bias, and the output bias replaces a value bias.
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

    def forward(
        self, x: Tensor, source: Tensor | None, bias: Tensor, past: KeyValue | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Attend over the past's keys and the source's; return the result and the keys and values of both.

        x [B, N, dim], source [B, M, source_dim] (None: the normalised x), bias [heads, N, past + M] -> [B, N, dim].
        """
        normed = self.query_norm(x)
        if source is None:
            weights = [layer.weight for layer in (self.query, self.key, self.value)]
            queries, keys, values = joined(normed, weights).chunk(3, -1)
            queries = queries + self.query.bias
        else:
            queries = self.query(normed)
            keys, values = joined(source, [self.key.weight, self.value.weight]).chunk(2, -1)
        if past:
            keys, values = torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (queries, keys, values))
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None].to(query.dtype))
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x), (keys, values)


class CausalPerceiver(nn.Module):
    """Tokens of T frames -> context c [B, T, C], c_t from frames <= t, and logits of the next frame's tokens.

    A linear map of the frame's own codes is added to the pooled read-out. Early in training attention averages over
    cells that hardly differ between frames, and without this map c stays the same for all frames (docs/log.md).
    """

    compiled = ("_read", "next_frame_logits")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim, cells = config.perceiver_dim, config.grid**2
        self.heads, self.latents, self.grid = config.perceiver_heads, config.perceiver_latents, config.grid
        self.position = nn.Parameter(torch.randn(cells, config.code_dim) * 0.5)
        self.latent = nn.Parameter(torch.randn(self.latents, dim))
        self.read = Attention(dim, self.heads, config.code_dim)
        self.layers = nn.ModuleList(Attention(dim, self.heads) for _ in range(config.perceiver_layers))
        self.pool = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.context_dim))
        self.glance = nn.Linear(cells * config.code_dim, config.context_dim, bias=False)
        self.context_norm = nn.LayerNorm(config.context_dim)
        self.next_context = nn.Linear(config.context_dim, dim)
        self.next_position = nn.Parameter(torch.randn(cells, dim))
        self.next_action = nn.Linear(config.action_dim, dim, bias=False) if config.action_dim else None
        self.next_codes = nn.Conv2d(config.code_dim, dim, 3, padding=1, bias=False)
        self.next_copy = nn.Parameter(torch.full((config.num_codes,), 3.0))
        self.next_token = nn.Sequential(nn.SiLU(), nn.LayerNorm(dim), nn.Linear(dim, config.num_codes))

        self._masks: dict[tuple[int, torch.device], Masks] = {}

    def forward(self, codes: Tensor) -> Tensor:
        """Context c [B, T, C] of codes [B, T, P, d]."""
        return self._read(codes, self._masks_of(codes.shape[1], codes.device))[0]

    def extend(self, codes: Tensor, memory: PerceiverMemory) -> tuple[Tensor, PerceiverMemory]:
        """Context of the T frames that follow those in `memory`, and the memory of all."""
        frames = codes.shape[1]
        masks = self._make_masks(memory.frames, frames, codes.device)
        context, remembered = self._read(codes, masks, memory.layers)
        return context, PerceiverMemory(memory.frames + frames, remembered)

    def _masks_of(self, frames: int, device: torch.device) -> Masks:
        """Masks of whole windows, made once: a captured step reads them at the same address each time."""
        if (frames, device) not in self._masks:
            with torch.inference_mode(False):
                self._masks[frames, device] = self._make_masks(0, frames, device)
        return self._masks[frames, device]

    def _make_masks(self, past: int, frames: int, device: torch.device) -> Masks:
        """For the read-in of cells, and for the layers among latents."""
        cells, latents = len(self.position), self.latents
        read, among = (causal_bias(latents, n, past, frames, self.heads, device) for n in (cells, latents))
        return read, among

    def _read(
        self, codes: Tensor, masks: Masks, past: tuple[KeyValue, ...] = ()
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Context of T frames, and the keys and values of each layer, those of `past` included."""
        batch, frames, _, _ = codes.shape
        earlier = past or (None,) * (1 + len(self.layers))
        tokens = (codes + self.position).flatten(1, 2)
        x = self.latent.repeat(frames, 1).expand(batch, -1, -1)
        x, read = self.read(x, tokens, masks[0], earlier[0])
        remembered = [read]
        for layer, before in zip(self.layers, earlier[1:], strict=True):
            x, keys_values = layer(x, None, masks[1], before)
            remembered.append(keys_values)
        pooled = wide(self.pool(x)).unflatten(1, (frames, self.latents)).mean(2)
        return self.context_norm(pooled + wide(self.glance(codes.flatten(2)))), tuple(remembered)

    def next_frame_logits(self, context: Tensor, codes: Tensor, ids: Tensor, actions: Tensor) -> Tensor:
        """Logits [B, T, P, num_codes] of the tokens of frame t+1.

        They are read from c_t [B, T, C], the codes [B, T, P, d] of frame t with their ids, int64 [B, T, P], and a_t
        [B, T, A]. A learned bonus of the present token makes the head start as a copy.
        """
        grid = codes.flatten(0, 1).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        near = self.next_codes(grid.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        frame = (
            self.next_context(context)
            if self.next_action is None
            else self.next_context(context) + self.next_action(actions)
        )
        logits = wide(self.next_token(near.unflatten(0, codes.shape[:2]) + frame[:, :, None] + self.next_position))
        return logits.scatter_add(-1, ids[..., None], self.next_copy[ids][..., None])
