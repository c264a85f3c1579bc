"""The named presets: where they differ from the defaults of the schema."""

from dataclasses import replace
from typing import Any

from aime_fast.config.schema import TrainConfig
from aime_fast.errors import unknown_name

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "debug": {
        "model": dict(
            max_components=5,
            latent_dim=16,
            hidden_dim=64,
            context_dim=32,
            num_slots=3,
            slot_dim=16,
            attention_state_dim=32,
            num_codes=64,
            code_dim=16,
            tokenizer_width=16,
            perceiver_latents=4,
            perceiver_dim=32,
            perceiver_layers=1,
            perceiver_heads=4,
            encoder_width=16,
            decoder_width=16,
            mlp_dim=64,
            num_mixtures=2,
            kl_samples=2,
        ),
        "loader": dict(batch_size=4, sequence_length=8, windows_per_epoch=100),
        "optim": dict(lr=1e-3, warmup_steps=10),
    },
    "small": {
        "model": dict(
            hidden_dim=256,
            context_dim=128,
            slot_dim=32,
            attention_state_dim=128,
            num_codes=256,
            code_dim=64,
            tokenizer_width=32,
            perceiver_latents=4,
            perceiver_dim=192,
            perceiver_layers=2,
            perceiver_heads=4,
            encoder_width=32,
            decoder_width=32,
            mlp_dim=768,
            num_mixtures=5,
            codebook_decay=0.95,
        ),
        "loader": dict(window_stride=1),
        "losses": dict(beta_warmup_epochs=4),
        "optim": dict(lr=4e-4),
    },
    "paper": {},
}


def preset_config(name: str) -> TrainConfig:
    """The configuration of a preset: `debug`, `small` or `paper`. `UserError` for another name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    config = TrainConfig(preset=name)  # type: ignore[arg-type]
    return replace(
        config, **{group: replace(getattr(config, group), **sizes) for group, sizes in PRESETS[name].items()}
    )
