"""Folders of runs that no training has written."""

import json

import numpy as np
import yaml

from aime_fast.config import preset_config, to_dict
from aime_fast.reporting.prediction import Prediction
from aime_fast.reporting.snapshot import Snapshot


def made_snapshot(
    frames=6, slots=3, components=5, grid=4, size=(16, 16), context=2, dim=7, codes=9, sticks=True, seed=0
):
    """Random values of the right shapes and ranges."""
    random = np.random.default_rng(seed)

    def pictures(count):
        return random.integers(0, 256, (count, *size, 3), dtype=np.uint8)

    def shares(*shape, axis=-1):
        values = random.random(shape) + 1e-3
        return values / values.sum(axis, keepdims=True)

    maps = shares(frames, slots, grid * grid).reshape(frames, slots, grid, grid)
    measure = np.stack([shares(components), shares(components)]) if sticks else np.zeros((2, 0))
    return Snapshot(
        step=np.array(120),
        frames=pictures(frames),
        reconstructions=pictures(frames),
        token_reconstructions=pictures(frames),
        imagined=pictures(max(frames - context, 0)),
        maps=maps.astype(np.float16),
        masks=shares(frames, slots, grid, grid, axis=1).astype(np.float16),
        centres=random.uniform(-1, 1, (frames, slots, 2)).astype(np.float32),
        weights=shares(frames, components).astype(np.float32),
        responsibilities=shares(frames, components).astype(np.float32),
        usage=shares(components).astype(np.float32),
        component_frames=pictures(components),
        measure=measure.astype(np.float32),
        concentration=np.array([3.0, 2.5] if sticks else [np.nan, np.nan], np.float32),
        latents=random.normal(size=(4 * frames, dim)).astype(np.float16),
        component=random.integers(0, components, 4 * frames).astype(np.int16),
        code_counts=random.integers(0, 50, codes),
    )


def made_prediction(frames=7, futures=2, size=(24, 32), context=3, seed=0):
    """Random pictures and scores; the filtered frames are the same in every future."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    made = random.integers(0, 256, (futures, frames, *size, 3), dtype=np.uint8)
    psnr = random.uniform(5, 40, (futures, frames))
    made[:, :context], psnr[:, :context] = made[0, :context], psnr[0, :context]
    return Prediction(truth, made, psnr, context)


TASKS = ("elbo", "perceiver", "predictive")


def healthy_row(step):
    """What a row of training shows where nothing is wrong."""
    row = {
        "total_elbo": 5 + 100 / step,
        "bits_per_dim": 2 + 10 / step,
        "kl_z": 40.0,
        "top_component_mass": 0.4,
        "effective_components": 6.0,
        "attention_diversity": 0.05,
        "perplexity": 30.0,
        "grad_norm": 2.0,
        "skipped_steps": 0.0,
        "data_wait": 0.01,
        "frames_per_second": 400.0,
        "epoch": step / 25,
    }
    row |= {f"grad_norm_{task}": 1.0 for task in TASKS}
    row |= {f"rgb_angle_{task}": 0.5 for task in TASKS} | {f"successive_cosine_{task}": 0.4 for task in TASKS}
    return row | {"rgb_cosine_elbo_perceiver": 0.2, "rgb_cosine_elbo_predictive": -0.3}


def healthy_validation(step):
    """The same for a row of validation."""
    row = {"psnr": 30 - 100 / step, "psnr_mean_frame": 22.0, "kl_z": 30.0, "bits_per_dim": 2 + 10 / step}
    row |= {"action_nats": 0.8, "psnr_ahead_1": 29.0, "psnr_ahead_5": 27.0, "psnr_ahead_10": 26.0}
    return row | {f"psnr_ahead_{h}_{name}": 24.0 for h in (1, 5, 10) for name in ("copy", "other_actions")}


def rows(steps=300, every=10, validate=100, train=healthy_row, validation=healthy_validation):
    """Rows as `metrics.jsonl` has them."""
    for step in range(every, steps + 1, every):
        yield {"step": step, "split": "train", "time": 1000.0 + step} | train(step)
        if step % validate == 0:
            yield {"step": step, "split": "val", "time": 1000.5 + step} | validation(step)


def config_of(preset="debug", **changes):
    """A configuration as `config.yaml` keeps it; `changes` are of the model."""
    plain = to_dict(preset_config(preset)) | {"steps": 300}
    return plain | {"model": plain["model"] | {"action_dim": 6} | changes}


def write_run(folder, found=None, config=None, snapshot=None):
    """Write a run's folder; gives it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config or config_of()))
    lines = [json.dumps(row) for row in (rows() if found is None else found)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if snapshot is not None:
        snapshot.save(folder)
    return folder
