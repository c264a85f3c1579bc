"""The mixture prior, alone, on latents that jump in one of a known number of ways: it must find them all."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor
from torch import distributions as D

from aime_fast.config import preset_config
from aime_fast.model.draws import make_draws
from aime_fast.model.priors import make_prior
from aime_fast.model.priors.mixture import MixtureDistribution
from aime_fast.model.priors.prior import Prior
from aime_fast.tasks.elbo import cluster_entropy

COMPONENTS = 8
CONFIG = replace(
    preset_config("debug").model, action_dim=2, latent_dim=6, hidden_dim=8, max_components=COMPONENTS, image_size=32
)
NOISE = 0.15
"""Standard deviation of a mode; jumps are about 2.4 long."""
STEPS, BATCH, FRAMES = 600, 16, 8


@dataclass
class Jumps:
    """z_t = z_{t-1} + jump_m + noise. Where `known`, h tells much about m: its odds are multiplied by exp(3 h_m)."""

    vectors: Tensor  # [M, D]
    odds: Tensor  # [M]
    known: bool

    def weights(self, hidden: Tensor) -> Tensor:
        """True probabilities of the modes, [B, T, M]."""
        gate = 3 * hidden[..., : len(self.odds)] if self.known else 0 * hidden[..., : len(self.odds)]
        return (self.odds.log() + gate).softmax(-1)

    def batch(self, size: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """h, a and z of the frames before, z of the frames, and their modes [B, T]."""
        sizes = CONFIG.hidden_dim, CONFIG.action_dim, CONFIG.latent_dim
        hidden, actions, before = (torch.randn(size, FRAMES, n, generator=generator) for n in sizes)
        modes = torch.multinomial(self.weights(hidden).flatten(0, 1), 1, generator=generator).view(size, FRAMES)
        noise = NOISE * torch.randn(before.shape, generator=generator)
        return hidden, actions, before, before + self.vectors[modes] + noise, modes

    def log_prob(self, change: Tensor, hidden: Tensor) -> Tensor:
        """True log-density of z_t - z_{t-1} [B, T, D] given h [B, T, H]: [B, T]."""
        modes = D.Independent(D.Normal(self.vectors.expand(*change.shape[:2], -1, -1), NOISE), 1)
        return D.MixtureSameFamily(D.Categorical(self.weights(hidden)), modes).log_prob(change)


def jumps(modes: int, known: bool) -> Jumps:
    vectors = torch.randn(modes, CONFIG.latent_dim, generator=Generator().manual_seed(modes))
    odds = torch.linspace(1, 2, modes)
    return Jumps(vectors, odds / odds.sum(), known)


def trained(data: Jumps) -> Prior:
    """The default prior after `STEPS` steps on the terms of the `elbo` task that reach it."""
    torch.manual_seed(0)
    prior, draw = make_prior(CONFIG), Generator().manual_seed(1)
    prior.frames_in_data.fill_(STEPS * BATCH * FRAMES)
    weights, optim = preset_config("debug").losses, preset_config("debug").optim
    adam = torch.optim.AdamW(prior.parameters(), optim.lr, (optim.beta1, optim.beta2), weight_decay=optim.weight_decay)
    for _ in range(STEPS):
        hidden, actions, before, z, _ = data.batch(BATCH, draw)
        found = prior(hidden, actions, before, make_draws(prior.draws, BATCH, FRAMES, draw))
        log_p, log_r = found.log_prob_and_responsibilities(z[:, :, None])
        share = log_r.exp()
        information = cluster_entropy(share.mean((0, 1, 2)), -(share * log_r).sum(-1).mean())
        loss = (
            sum((kl.mean() for kl in found.kl_terms().values()), -log_p.mean()) - weights.entropy_weight * information
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
    return prior


def peaks(found: MixtureDistribution, used: list[int]) -> list[list[int]]:
    """The components in groups, one for each peak of the first frame's density.

    Two belong to one peak if the density does not fall between their means by more than 5 % of the lower one.
    """
    means, line = found.means[0, 0], torch.linspace(0, 1, 21)[:, None]
    one = replace(found, **{name: getattr(found, name)[:1, :1] for name in ("log_weights", "means", "log_vars")})

    def joined(i: int, j: int) -> bool:
        along = one.log_prob((means[i] + line * (means[j] - means[i]))[None, None])[0, 0]
        return bool(along.min() > min(along[0], along[-1]) - 0.05)

    groups: list[list[int]] = []
    for k in used:
        near = [group for group in groups if any(joined(k, other) for other in group)]
        groups = [group for group in groups if group not in near] + [[k, *(i for group in near for i in group)]]
    return groups


@dataclass
class Found:
    """What a trained prior says about new sequences."""

    data: Jumps
    prior: MixtureDistribution
    hidden: Tensor
    before: Tensor  # z_{t-1} [B, T, D]
    z: Tensor  # [B, T, D]
    log_prob: Tensor  # of z, [B, T]
    table: Tensor  # share of frames with mode m that component k explains, [M, K]; sums to 1

    @property
    def used(self) -> Tensor:
        """Numbers of the components that explain more than 2 % of the frames."""
        return (self.table.sum(0) > 0.02).nonzero()[:, 0]


@pytest.fixture(scope="module", params=[(1, False), (2, False), (3, True), (4, False), (4, True)])
def found(request):
    """Numbers of modes up to half of the components; without and with an h that tells the mode."""
    data = jumps(*request.param)
    prior, draw = trained(data), Generator().manual_seed(2)
    hidden, actions, before, z, modes = data.batch(128, draw)
    with torch.no_grad():
        made = prior(hidden, actions, before, make_draws(prior.draws, 128, FRAMES, None))
        log_p, log_r = made.log_prob_and_responsibilities(z[:, :, None])
    share = log_r[:, :, 0].exp()
    table = torch.stack([share[modes == m].sum(0) for m in range(len(data.odds))]) / modes.numel()
    return Found(data, made, hidden, before, z, log_p[:, :, 0], table)


def test_the_density_has_as_many_peaks_as_there_are_modes(found):
    """There are more components than modes: those that are left over share a peak, or have no weight."""
    assert len(peaks(found.prior, found.used.tolist())) == len(found.data.odds)


def test_a_component_explains_one_mode_and_lies_where_the_mode_is(found):
    assert found.table.max(0).values.sum() > 0.99
    owner = found.table.argmax(0)
    assert set(owner[found.used].tolist()) == set(range(len(found.data.odds)))
    jump = (found.prior.means - found.before[:, :, None]).mean((0, 1))  # [K, D]
    for mode, row in enumerate(found.table):
        centre = (row[:, None] * jump).sum(0) / row.sum()
        assert (centre - found.data.vectors[mode]).abs().max() < NOISE


def test_the_density_is_nearly_the_true_one(found):
    """Where h tells the mode, weights that do not read it would lose more than 0.5 nats."""
    truth = found.data.log_prob(found.z - found.before, found.hidden)
    assert (truth - found.log_prob).mean() < 0.3


def effective_components(dim: int) -> float:
    """Components in use after 60 steps on made z of `dim` numbers, of which the step from frame to frame is known."""
    torch.manual_seed(0)
    prior = make_prior(replace(CONFIG, latent_dim=dim, hidden_dim=32, max_components=15))
    optimiser, generator = torch.optim.AdamW(prior.parameters(), lr=2e-3), Generator().manual_seed(0)
    seen = torch.randn(32, dim, generator=generator) / 32**0.5
    for _ in range(60):
        hidden, before, noise = (torch.randn(BATCH, FRAMES, n, generator=generator) for n in (32, dim, dim))
        latent = 0.9 * before + 0.5 + 0.3 * (hidden @ seen + noise)
        draws = make_draws(prior.draws, BATCH, FRAMES, generator)
        distribution = prior(hidden, torch.zeros(BATCH, FRAMES, CONFIG.action_dim), before, draws)
        log_prob, log_shares = distribution.log_prob_and_responsibilities(latent[:, :, None])
        optimiser.zero_grad()
        (-log_prob.mean()).backward()
        optimiser.step()
    usage = log_shares.detach().exp().mean((0, 1, 2))
    return float(torch.special.entr(usage).sum().exp())


@pytest.mark.parametrize("dim", [16, 36, 96])
def test_no_component_takes_every_frame_whatever_the_size_of_z(dim):
    assert effective_components(dim) > 3


def test_components_that_start_apart_leave_all_to_one(monkeypatch):
    """What the first offsets were: equally long in each coordinate, so longer in larger z."""
    monkeypatch.setattr("aime_fast.model.priors.dpgmm.APART", 0.15 * 96**0.5)
    assert effective_components(96) < 2
