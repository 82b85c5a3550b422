"""Fixed numbers of a measurement, beside batches of any dtype on any device."""

import torch
from torch import Tensor


class Constant:
    """Numbers in full precision that follow a batch. They are no weights, so no checkpoint has them.

    Args:
        exact: real numbers, complex ones, integers or booleans.
    """

    def __init__(self, exact: Tensor) -> None:
        if exact.is_floating_point():
            exact = exact.double()
        self.exact = exact.detach().cpu()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def beside(self, x: Tensor) -> Tensor:
        """The numbers on the device of x; real and complex ones also in its precision."""
        dtype = self.exact.dtype
        if dtype.is_complex:
            dtype = x.dtype.to_complex()
        elif dtype.is_floating_point:
            dtype = x.dtype
        key = (x.device, dtype)
        if key not in self._copies:
            self._copies[key] = self.exact.to(device=x.device, dtype=dtype)
        return self._copies[key]
