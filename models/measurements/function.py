"""Any function as a measurement."""

from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear, Measurement


class Function(Measurement):
    """A(x0) of any differentiable function of a batch of torch, (B, *D) -> (B, *M).

    Args:
        function: of samples, each by itself.
        shape: of one sample, *D.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.function = function

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return tuple(self.function(self.probes(1)).shape[1:])

    def measure(self, x0: Tensor) -> Tensor:
        return self.function(x0)


class LinearFunction(Function, Linear):
    """A x0 of any linear function of a batch. Its adjoint is exact: it is the function's vector-Jacobian product."""

    linear = True

    def transpose(self, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape, requires_grad=True)
            return torch.autograd.grad(self.function(x), x, y, create_graph=y.requires_grad)[0]
