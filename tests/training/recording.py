"""A recording small enough to train on in a moment."""

import torch

EPISODES, FRAMES, ACTIONS = 5, 12, 2


def write_recording(path, frames=FRAMES):
    """A `.pt` file of 5 short episodes of moving stripes; the last one is for validation."""
    generator = torch.Generator().manual_seed(0)
    count = EPISODES * frames
    rows = (torch.arange(64)[:, None] + 3 * torch.arange(count)[:, None, None]) % 256
    pixels = rows[..., None].expand(count, 64, 64, 3).to(torch.uint8).contiguous()
    pixels[..., 1] = 255 - pixels[..., 1]
    dones = torch.zeros(count, dtype=torch.bool)
    dones[frames - 1 :: frames] = True
    torch.save(
        {
            "observations": pixels,
            "actions": torch.randn(count, ACTIONS, generator=generator),
            "rewards": torch.rand(count, generator=generator),
            "dones": dones,
        },
        path,
    )
    return str(path)


def tiny_options(data, out, **changes):
    """Options of a run with 3 steps an epoch and one batch of validation."""
    options = {
        "preset": "debug",
        "data": data,
        "out": str(out),
        "steps": 7,
        "checkpoint_every": 100,
        "loader": {"batch_size": 2, "sequence_length": 4, "windows_per_epoch": 6},
        "losses": {"beta_warmup_steps": 6},
        "logging": {"log_every": 2, "tracker": "none"},
    }
    return options | changes
