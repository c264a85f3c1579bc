"""Parts are replaced while the context lasts, and are themselves again after it."""

import pytest
import torch
from torch import nn

from aime_fast.evaluation.worth.replacing import readers, replaced, with_argument, with_result


class Adder(nn.Module):
    def forward(self, left, right=1):
        return left + right


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Adder(), nn.Identity()

    def forward(self, x):
        return self.second(self.first(x))


def test_results_and_arguments_are_changed_by_name():
    model = Model()
    with replaced(model.first, with_result(lambda y: 10 * y)):
        assert model(1) == 20
    with replaced(model.first, with_argument("right", lambda right: right + 5)):
        assert model(1) == 7, "a default is an argument too"
    with replaced(model.first, lambda original, arguments: arguments):
        assert model(1) == {"left": 1, "right": 1}
    assert model(1) == 2
    assert "forward" not in vars(model.first)


def test_an_error_inside_restores_the_part():
    model = Model()
    with pytest.raises(ZeroDivisionError), replaced(model.first, with_result(lambda y: 10 * y)):
        raise ZeroDivisionError
    assert model(1) == 2


def test_replacements_nest():
    model = Model()
    with replaced(model.first, with_result(lambda y: y + 100)):
        with replaced(model.first, with_result(lambda y: 2 * y)):
            assert model(1) == 204
        assert model(1) == 102
    assert model(1) == 2


def test_hooks_and_gradients_still_work():
    part, seen = Adder(), []
    part.register_forward_hook(lambda module, arguments, result: seen.append(result))
    x = torch.ones(1, requires_grad=True)
    with replaced(part, with_result(lambda y: 3 * y)):
        part(x).backward()
    assert x.grad.item() == 3
    assert seen[0].item() == 6


def test_parts_are_found_by_what_they_read():
    model = Model()
    assert readers(model, "right") == [model.first]
    assert readers(model, "input") == [model.second]
    assert readers(model, "nothing") == []
