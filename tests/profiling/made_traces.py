"""Chrome traces of made steps, as torch's profiler writes them on a CPU and on a card."""

TRAINING, DATA, AUTOGRAD, CARD = 1, 2, 3, 7
"""Threads of the host, and the stream of the card."""


def event(category, name, start, end, thread, **args):
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start, "tid": thread, "args": args}


def phase(name, start, end, thread=TRAINING):
    return event("user_annotation", name, start, end, thread)


def host_of_a_step(start):
    """Phases of a step of 100 microseconds: 5 of wait, 40 forward, 30 backward, 10 balance, 5 step; 10 elsewhere."""
    spans = {
        "wait": (0, 5),
        "forward": (5, 45),
        "backward": (45, 77),
        "backward/elbo": (46, 66),
        "backward/predictive": (66, 76),
        "balance": (80, 90),
        "step": (90, 95),
    }
    made = [phase(name, start + first, start + last) for name, (first, last) in spans.items()]
    return [
        *made,
        phase("Optimizer.step#AdamW.step", start + 91, start + 94),
        phase("data", start + 6, start + 16, DATA),
    ]


def operator(name, start, end, thread=TRAINING):
    return event("cpu_op", name, start, end, thread)


def on_a_cpu(steps=3):
    """In `forward` an operator of 20 microseconds, of which an inner one takes 15, and another of 10."""
    made = []
    for start in range(0, 100 * steps, 100):
        made += host_of_a_step(start)
        made += [operator("outer", start + 10, start + 30), operator("inner", start + 12, start + 27)]
        made += [operator("other", start + 32, start + 42), operator("read", start + 7, start + 9, DATA)]
    return [*made, phase("checkpoint", 100 * steps, 100 * steps + 50)]


def kernel(name, launched, thread, start, end, number):
    return [
        event("cuda_runtime", "cudaLaunchKernel", launched, launched + 1, thread, correlation=number),
        event("kernel", name, start, end, CARD, correlation=number),
    ]


def on_a_card(steps=3):
    """Kernels run later than they are launched; autograd launches from its own thread, and the reader copies."""
    made = []
    for index in range(steps):
        start, number = 100 * index, 10 * index
        made += host_of_a_step(start)
        made += kernel("gemm", start + 10, TRAINING, start + 20, start + 50, number)
        made += kernel("gemm", start + 15, TRAINING, start + 50, start + 60, number + 1)
        made += kernel("gradient", start + 50, AUTOGRAD, start + 60, start + 80, number + 2)
        made += kernel("gradient", start + 70, AUTOGRAD, start + 80, start + 90, number + 3)
        made += [
            event("cuda_runtime", "cudaMemcpyAsync", start + 8, start + 9, DATA, correlation=number + 4),
            event("gpu_memcpy", "copy", start + 10, start + 20, CARD + 1, correlation=number + 4),
            event("gpu_user_annotation", "forward", start + 20, start + 60, CARD),
        ]
    return made
