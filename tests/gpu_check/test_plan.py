"""The plan: every job can be called, has a name of its own, and comes in the order of worth."""

import inspect
from importlib import import_module

import pytest
from gpu_check.driver import chosen
from gpu_check.packages import ALL
from gpu_check.plan import PUBLISHED, STAGES, plan
from gpu_check.surroundings import Mistake


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_job_can_be_called(device):
    for job in plan(device):
        module, _, function = job.call.partition(":")
        inspect.signature(getattr(import_module(module), function)).bind(print, **job.options)
        assert job.stage in STAGES and set(job.also) <= set(STAGES) and set(job.needs) <= set(ALL)
        assert 0 <= job.least <= job.limit


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_names_are_unique(device):
    names = [(job.stage, job.name) for job in plan(device)]
    assert len(names) == len(set(names))


def test_the_order_of_worth():
    jobs = plan("cuda")
    stages = list(dict.fromkeys(job.stage for job in jobs))
    assert stages[:5] == ["machine", "agree", "steps", "deepspeed", "tests"]
    steps = [job.name for job in jobs if job.stage == "steps"]
    assert steps[:4] == [
        f"{preset} B=8 T=16 tf32 {mode}" for mode in ("captured", "as written") for preset in ("small", "paper")
    ]
    assert {"small B=16 T=32 fp32 compiled", "paper B=64 T=16 bf16 captured and compiled"} < set(steps)


def test_what_comes_before_the_slow_jobs_fits_a_small_budget():
    """Their limits, not the time they take, sum to less than the default budget."""
    jobs = plan("cuda")
    first = next(index for index, job in enumerate(jobs) if "compiled" in job.name)
    assert sum(job.limit for job in jobs[:first] if job.stage != "tests") < 480


def test_the_published_sizes_are_the_jobs_of_targets():
    names = [job.name for job in chosen(plan("cuda"), "targets")]
    assert sorted(names) == sorted(f"paper B={b} T={t} tf32 captured" for b, t in PUBLISHED)


def test_stages_are_chosen_by_name():
    assert {job.stage for job in chosen(plan("cuda"), " agree , tests,")} == {"agree", "tests"}
    with pytest.raises(Mistake, match=r"unknown stage 'step'; did you mean 'steps'\? choose from machine, agree"):
        chosen(plan("cuda"), "agree,step")
