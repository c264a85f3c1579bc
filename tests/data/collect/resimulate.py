"""Simulate recorded actions again with nothing but dm_control, and see that episodes end as their task does.

`python resimulate.py IN.npz OUT.npz`: actions [E,N,1] and action_repeat in, frames, rewards and lengths out.
"""

import sys

import numpy as np
from dm_control import suite
from dm_control.suite import cartpole

given = np.load(sys.argv[1])
frames, rewards = [], []
for number, actions in enumerate(given["actions"]):
    seed = np.random.SeedSequence(5, spawn_key=(number,)).spawn(2)[0]
    random = np.random.RandomState(np.random.MT19937(seed))
    environment = suite.load("cartpole", "swingup", task_kwargs={"random": random})
    environment.physics.model.vis.global_.offwidth = environment.physics.model.vis.global_.offheight = 64
    environment.physics.model.vis.quality.shadowsize = 512
    environment.reset()
    for action in actions:
        frames.append(environment.physics.render(64, 64, camera_id=1))
        rewards.append(sum(environment.step(action).reward for _ in range(given["action_repeat"])))
    environment.physics.free()

from aime_fast.data.collect.simulation import Choices, Simulation  # noqa: E402

choices = dict(length=20, policy="random", action_repeat=100, camera=0, seed=0)
cut, _ = Simulation(Choices(environment="cartpole_swingup", **choices)).record(0, lambda: None)
cartpole.Balance.get_termination = lambda self, physics: 0.0 if physics.time() > 2.5 else None
over, _ = Simulation(Choices(environment="cartpole_swingup", **choices)).record(0, lambda: None)
ends = [episode.terminated.nonzero()[0].tolist() for episode in (cut, over)]
ends += [episode.truncated.nonzero()[0].tolist() for episode in (cut, over)]
assert (len(cut), len(over)) == (10, 3), (len(cut), len(over))
assert ends == [[], [2], [9], []], ends
np.savez(sys.argv[2], frames=np.stack(frames), rewards=np.array(rewards))
