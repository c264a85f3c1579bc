"""LPIPS against torchmetrics, Frechet distances against SciPy, features of networks and states."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from made_windows import windows_of
from scipy.linalg import sqrtm
from torch import nn

from aime_fast.errors import UserError
from aime_fast.evaluation.distances.frechet import between_halves, frechet_distance, frechet_over
from aime_fast.evaluation.distances.fvd import load_video_network
from aime_fast.evaluation.distances.lpips import load_lpips
from aime_fast.evaluation.distances.state_probe import fit_state_features
from aime_fast.evaluation.linear import fit_pca

CPU = torch.device("cpu")


def alexnet():
    """`torchvision.models.alexnet().features`."""
    sizes = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
    layers = list[nn.Module]()
    for number, (inputs, outputs, kernel, stride, padding) in enumerate(sizes):
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if number in (0, 1, 4) else []
    return nn.Sequential(*layers)


def vgg16():
    """`torchvision.models.vgg16().features`."""
    layers, inputs = list[nn.Module](), 3
    for outputs in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2, 2)]
        inputs = outputs or inputs
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("name", "net", "build"), [("alexnet", "alex", alexnet), ("vgg16", "vgg", vgg16)])
def test_lpips_is_that_of_torchmetrics(tmp_path, monkeypatch, name, net, build):
    from torchmetrics.functional.image import lpips

    features, path = build(), tmp_path / f"{name}.pth"
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, path)
    fake = ModuleType("torchvision")
    fake.models = SimpleNamespace(**{name: lambda weights: SimpleNamespace(features=features)})
    monkeypatch.setitem(sys.modules, "torchvision", fake)
    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)
    theirs = lpips._LPIPS(net=net, pnet_rand=True)
    ours = load_lpips(str(path), CPU)
    a, b = torch.rand(2, 2, 3, 3, 64, 64).mul(2).sub(1)
    expected = theirs(a.flatten(0, 1), b.flatten(0, 1)).view(2, 3)
    assert expected.min() > 1e-3
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours(a, a), torch.zeros(2, 3))


def test_files_that_are_no_image_network(tmp_path):
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "other.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name in ("text.pth", "other.pth", "tensor.pth", "missing.pth"):
        with pytest.raises(UserError, match=r"--lpips-weights .* has no weights of AlexNet or VGG-16"):
            load_lpips(str(tmp_path / name), CPU)


def formula(a, b):
    s, t = np.cov(a.T), np.cov(b.T)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)


@pytest.mark.parametrize(("count", "size"), [(50, 3), (40, 12), (500, 7)])
def test_the_frechet_distance_is_that_of_its_formula(count, size):
    draw = np.random.default_rng(count)
    a = draw.normal(0, 1, (count, size)) @ draw.normal(0, 1, (size, size))
    b = draw.normal(0.5, 2, (count + 5, size))
    found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(formula(a, b), rel=1e-8)


def test_fewer_vectors_than_dimensions():
    """In a subspace the distance is that of the subspace; without spread it is that of the means."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(0, 1, (6, 3)), draw.normal(1, 1, (7, 3))
    turned = np.linalg.qr(draw.normal(0, 1, (40, 3)))[0].T
    found = frechet_distance(torch.from_numpy(a @ turned), torch.from_numpy(b @ turned))
    assert found == pytest.approx(formula(a, b), rel=1e-8)
    still = frechet_distance(torch.ones(5, 4), torch.full((5, 4), 3.0))
    assert still == pytest.approx(16.0)
    same = torch.from_numpy(a)
    assert frechet_distance(same, same) == pytest.approx(0.0, abs=1e-12)


def test_intervals_of_distances_are_of_episodes():
    draw = torch.Generator().manual_seed(0)
    recorded = torch.randn(40, 4, 3, generator=draw, dtype=torch.float64)
    made, episodes = recorded + 1, np.arange(40) // 5
    found = frechet_over(made, recorded, episodes)
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3, 3)), "a constant shift in every episode"
    noisy = recorded + 1 + torch.randn(8, 1, 3, generator=draw, dtype=torch.float64).repeat_interleave(5, 0)
    wide = frechet_over(noisy, recorded, episodes)
    assert wide.low < wide.mean < wide.high
    assert np.isnan(frechet_over(made, recorded, np.zeros(40, int)).low)
    assert 0 < between_halves(recorded) < 0.3 < frechet_distance(made.flatten(0, 1), recorded.flatten(0, 1))


def test_jackknife_intervals_cover():
    """Gaussian features of 10 episodes, shifted by 1 in two dimensions: the distance of the distributions is 2."""
    draw, hits = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        a, b = torch.randn(2, 10, 40, 2, generator=draw, dtype=torch.float64)
        found = frechet_over(a + 1, b, np.arange(10))
        hits += found.low <= 2 <= found.high
    assert 90 <= hits <= 99


class Clip(nn.Module):
    """Mean level of each channel over a clip, and its last frame's; the usual switches."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if x.shape[2] < 4:
            raise RuntimeError("too few frames")
        x = x / 255 if rescale else x
        values = torch.cat([x.mean((2, 3, 4)), x[:, :, -1].mean((2, 3))], 1)
        return values if return_features and resize else values[:, :1]


def test_a_video_network_sees_levels_of_whole_clips(tmp_path):
    path = str(tmp_path / "clip.pt")
    torch.jit.script(Clip()).save(path)
    features = load_video_network(path, 5, 16, CPU)
    clips = torch.rand(3, 5, 3, 16, 16) * 2 - 1
    levels = (clips + 1) / 2
    expected = torch.cat([levels.mean((1, 3, 4)), levels[:, -1].mean((2, 3))], 1)
    torch.testing.assert_close(features(clips), expected[:, None], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"takes no clip of 3 frames of 16x16 .*too few frames.*raise --horizon"):
        load_video_network(path, 3, 16, CPU)
    (tmp_path / "text.pt").write_text("weights")
    for name in ("text.pt", "missing.pt"):
        with pytest.raises(UserError, match=r"--fvd-weights .* is no TorchScript network"):
            load_video_network(str(tmp_path / name), 5, 16, CPU)


def test_the_state_probe_reads_where_a_body_is_and_how_it_moves():
    """A grey level that is the position, and grows by the velocity: the features are both, in standard deviations."""
    draw, frames, states = np.random.default_rng(0), [], []
    for _ in range(30):
        speed = draw.integers(-9, 10)
        position = draw.integers(60, 180) + speed * np.arange(8)
        frames.append(np.broadcast_to(position[:, None, None, None], (8, 16, 16, 3)).astype(np.uint8))
        states.append(np.stack([position, np.full(8, speed)], 1).astype(float))
    windows = windows_of(frames, [np.zeros((8, 1))] * 30)
    layout = SimpleNamespace(
        seen_positions=lambda x: (["x"], x[:, :1]), moving_velocities=lambda x: (["speed"], x[:, 1:])
    )
    kept = SimpleNamespace(of=lambda number: states[number], layout=layout)
    pca = fit_pca(torch.cat([batch.frames().flatten(0, 1).flatten(1) for _, batch in windows.parts()]), 4)
    features = fit_state_features(windows, list(range(30)), kept, pca, context=3)
    found = features(windows.batch(np.arange(30)).frames())
    truth = torch.from_numpy(np.stack(states))
    assert found.shape == (30, 5, 2)
    deviation = truth[:, 4:].flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(found * deviation, truth[:, 3:], rtol=0, atol=0.5)
