"""Policies as a user would write them; the processes that record import this file."""

import os
import signal

frames = 0


def noise(observation, time_step, action_spec, generator):
    """Uniform noise. With `INTERRUPT_AT` set, presses Ctrl-C at that frame of this process and waits for the end."""
    global frames
    frames += 1
    assert observation.shape == (64, 64, 3) and observation.dtype.name == "uint8"
    if frames == int(os.environ.get("INTERRUPT_AT", "0")):
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    return generator.uniform(action_spec.minimum, action_spec.maximum)


def stubborn(observation, time_step, action_spec, generator):
    raise LookupError("no idea")


def killed(observation, time_step, action_spec, generator):
    os.kill(os.getpid(), signal.SIGKILL)


not_a_function = 3
