"""The trivial counterpart of each part of the model, and what has to be known for it from training windows."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from aime_fast.evaluation.metrics import evaluating
from aime_fast.evaluation.windows import Windows
from aime_fast.evaluation.worth.replacing import Around, Original, readers, replaced, with_argument, with_result
from aime_fast.model.draws import Draws, make_draws
from aime_fast.model.outputs import SequenceOutputs
from aime_fast.model.priors.gaussian import GaussianDistribution
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

Apply = Callable[[WorldModel, "Facts"], list[tuple[torch.nn.Module, Around]]]


@runtime_checkable
class Mixture(Protocol):
    """A prior distribution that is a mixture of diagonal Gaussians."""

    log_weights: Tensor
    """[B, T, K]."""
    means: Tensor
    """[B, T, K, D]."""
    log_vars: Tensor
    """[B, T, K, D]."""


@dataclass(frozen=True)
class Facts:
    """What the counterparts take from training windows."""

    slots: Tensor | None
    """Mean of the slots' pieces of z that the decoder reads, end to end; None if it has none."""
    step_log_var: Tensor
    """Log of the mean square of z_t - z_{t-1}, [D]."""
    mixture: bool
    """Whether the prior is a mixture of several components."""


@dataclass(frozen=True)
class Counterpart:
    """A part of the model and what stands in for it."""

    name: str
    apply: Apply
    """The modules to replace, with what replaces each."""
    missing: Callable[[WorldModel, Facts], str | None] = lambda model, facts: None
    """Why the model has no such part; None if it has it."""

    @contextmanager
    def standing_in(self, model: WorldModel, facts: Facts) -> Iterator[None]:
        """Inside the context the model runs with the counterpart."""
        with ExitStack() as stack:
            for module, around in self.apply(model, facts):
                stack.enter_context(replaced(module, around))
            yield


def _mean_slots(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    def constant(latent: object) -> object:
        assert facts.slots is not None
        z = cast(Tensor, latent)
        shared = z.shape[-1] - len(facts.slots)
        return torch.cat([z[..., :shared], facts.slots.expand(*z.shape[:-1], -1)], -1)

    return [(model.decoder, with_argument("latent", constant))]


def _zero(value: object) -> object:
    return torch.zeros_like(cast(Tensor, value))


def _no_context(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    return [(part, with_argument("context", _zero)) for part in readers(model, "context")]


def _nothing_kept(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    return [(model.decoder, with_argument("kept", lambda _: None))]


def _forgetful(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    """Each frame is the LSTM's first one."""

    def around(original: Original, arguments: dict[str, object]) -> object:
        inputs = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        batch, time = next(iter(inputs.values())).shape[:2]
        single = {name: x.flatten(0, 1)[:, None] for name, x in inputs.items()}
        hidden, (h, c) = cast(
            tuple[Tensor, tuple[Tensor, Tensor]], original(**single, state=model.dynamics.start_state(batch * time))
        )
        last = tuple(x.unflatten(1, (batch, time))[:, :, -1].contiguous() for x in (h, c))
        return hidden[:, 0].unflatten(0, (batch, time)), last

    return [(model.dynamics, around)]


def _random_walk(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    def around(original: Original, arguments: dict[str, object]) -> object:
        latent = cast(Tensor, arguments["latent"])
        return GaussianDistribution(latent, facts.step_log_var.expand_as(latent))

    return [(model.prior, around)]


def collapsed(prior: Mixture) -> GaussianDistribution:
    """The Gaussian with the mean and the variances of the mixture."""
    weights = prior.log_weights.exp()[..., None]
    mean = (weights * prior.means).sum(-2)
    variance = (weights * (prior.log_vars.exp() + (prior.means - mean[..., None, :]).square())).sum(-2)
    return GaussianDistribution(mean, variance.log())


def with_uniform_weights(prior: Mixture) -> Mixture:
    """The same components, all equally likely."""
    even = copy(prior)
    even.log_weights = torch.full_like(prior.log_weights, -math.log(prior.log_weights.shape[-1]))
    return even


def _collapse(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    return [(model.prior, with_result(lambda prior: collapsed(cast(Mixture, prior))))]


def _uniform(model: WorldModel, facts: Facts) -> list[tuple[torch.nn.Module, Around]]:
    return [(model.prior, with_result(lambda prior: with_uniform_weights(cast(Mixture, prior))))]


def _no_slots(model: WorldModel, facts: Facts) -> str | None:
    return "no piece of z belongs to a slot" if facts.slots is None else None


def _no_mixture(model: WorldModel, facts: Facts) -> str | None:
    return None if facts.mixture else "the prior is no mixture"


def _no_context_reader(model: WorldModel, facts: Facts) -> str | None:
    return None if readers(model, "context") else "no part reads the context"


def _no_keeping(model: WorldModel, facts: Facts) -> str | None:
    return None if model.decoder in readers(model, "kept") else "the decoder reads no older frame"


def _no_carry(model: WorldModel, facts: Facts) -> str | None:
    return None if model.prior in readers(model, "latent") else "the prior does not read z of the frame before"


COUNTERPARTS = (
    Counterpart("slots: their mean", _mean_slots, _no_slots),
    Counterpart("context: zero", _no_context, _no_context_reader),
    Counterpart("kept frame: none", _nothing_kept, _no_keeping),
    Counterpart("LSTM: reset each frame", _forgetful),
    Counterpart("prior: N(z of the frame before)", _random_walk, _no_carry),
    Counterpart("mixture: one Gaussian", _collapse, _no_mixture),
    Counterpart("mixture: uniform weights", _uniform, _no_mixture),
)


@torch.no_grad()
def find_facts(model: WorldModel, windows: Windows) -> Facts:
    """What the counterparts need, from training `windows`; the model runs as it is and keeps its mode."""
    means, steps, mixture = list[Tensor](), list[Tensor](), False
    with ExitStack() as stack:
        device = stack.enter_context(evaluating(model))
        for rows, batch in windows.parts():
            on_device = batch.to(device)
            draws = filtering_draws(model, int(rows[0]), *on_device.actions.shape[:2])
            outputs: SequenceOutputs = model(on_device.frames(), on_device.actions, draws)
            mixture = isinstance(outputs.prior, Mixture) and outputs.prior.log_weights.shape[-1] > 1
            steps.append((outputs.samples[:, 1:] - outputs.latents[:, :-1, None]).square().mean((1, 2)))
            means.append(outputs.latents.mean(1))
    slots = torch.cat(means).mean(0)[model.decoder.pieces.shared :]
    return Facts(slots if len(slots) else None, torch.cat(steps).mean(0).clamp_min(1e-8).log(), mixture)


def filtering_draws(model: WorldModel, key: int, batch: int, frames: int) -> Draws:
    """Random numbers for the posterior and the prior; everything else of the pass as it is when filtering.

    So no noise is carried into the next frame.
    """
    rest = make_draws(model.declared_draws, batch, frames, None)
    drawn = make_draws([*model.prior.draws, *model.posterior.draws], batch, frames, torch.Generator().manual_seed(key))
    return replace(rest, values=rest.values | drawn.values)
