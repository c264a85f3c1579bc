"""Shape and dtype of what every public operator returns, in single and in double precision, with a batch of one."""

import pytest
import torch

import aime_kernels

N, S, K, D, M, P = 2, 3, 5, 7, 4, 6
LEVELS = torch.arange(N * 5 * 4 * 3 * 3, dtype=torch.uint8).view(N, 5, 4, 3, 3)


def calls(n, dtype):
    """Operator -> (what it returns, the shapes it must have, their dtypes) on `n` rows of `dtype`."""

    def draw(*shape):
        return torch.randn(shape, dtype=dtype)

    k, frames = aime_kernels, draw(n, 3, 4, 5).clamp(-1, 1)
    vectors = [[draw(3, 2), draw(5)] for _ in range(n)]
    sticks = k.kumaraswamy_log_sticks(draw(n, K), draw(n, K), torch.rand(n, K, dtype=dtype))
    mixture = draw(n, S, D), draw(n, K).log_softmax(-1), draw(n, K, D), draw(n, K, D)
    slots = k.slot_attention(draw(n, S, D), draw(n, P, D), draw(n, P, D))
    positive = torch.rand(4, n, K, dtype=dtype) + 0.5
    direction, update = ([torch.zeros(3, 2, dtype=dtype), torch.zeros(5, dtype=dtype)] for _ in range(2))
    scalars = torch.ones(2, n + 1, dtype=torch.float64)
    k.rgb_combine(vectors, direction, update, scalars, torch.tensor(True))
    same = [dtype]
    return {
        "distance_to_codes": (k.distance_to_codes(draw(n, D), draw(K, D)), [(n,)], same),
        "expected_kumaraswamy_beta_kl": (k.expected_kumaraswamy_beta_kl(*positive), [(n, K)], same),
        "gamma_kl": (k.gamma_kl(*positive), [(n, K)], same),
        "gather_windows": (
            k.gather_windows(LEVELS.flatten(0, 1), torch.zeros(n, dtype=torch.int64), 5),
            [(n, 5, 4, 3, 3)],
            [torch.uint8],
        ),
        "gaussian_log_density": (k.gaussian_log_density(draw(n, S, D), draw(n, 1, D), draw(n, 1, D)), [(n, S)], same),
        "kumaraswamy_log_weights": (
            k.kumaraswamy_log_weights(draw(n, K), draw(n, K), torch.rand(n, K, dtype=dtype)),
            [(n, K + 1)],
            same,
        ),
        "kumaraswamy_log_sticks": (sticks, [(n, K), (n, K)], same * 2),
        "logistic_mixture_loss": (
            k.logistic_mixture_loss(
                frames.flatten(2)[:, None], draw(n, 20, D), draw(10 * M, D), draw(n, 1, 3, 20), draw(n), 0.5
            ),
            [(), (n,), (n,)],
            same * 3,
        ),
        "logistic_mixture_mean": (k.logistic_mixture_mean(draw(n, 10 * M, 4, 5)), [(n, 3, 4, 5)], same),
        "mixture_log_density": (k.mixture_log_density(*mixture), [(n, S), (n, S, K)], same * 2),
        "nearest_codes": (k.nearest_codes(draw(n, D), draw(K, D)), [(n,)], [torch.int64]),
        "normalise_frames": (k.normalise_frames(LEVELS[:n]), [(n, 5, 3, 4, 3)], [torch.float32]),
        "rgb_combine": ([*direction, *update], [(3, 2), (5,)] * 2, same * 4),
        "rgb_gram": (k.rgb_gram(vectors), [(n, n)], [torch.float64]),
        "slot_attention": (slots, [(n, S, D), (n, S, P), (n, S, P)], same * 3),
        "stick_breaking_log_weights": (k.stick_breaking_log_weights(*sticks), [(n, K + 1)], same),
    }


@pytest.mark.parametrize("name", aime_kernels.__all__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, N])
def test_shapes_and_dtypes(name, n, dtype):
    found, shapes, dtypes = calls(n, dtype)[name]
    tensors = [found] if isinstance(found, torch.Tensor) else found
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert [tensor.dtype for tensor in tensors] == dtypes
    assert all(tensor.isfinite().all() for tensor in tensors)
