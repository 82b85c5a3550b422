"""Some of an image's Fourier coefficients, as magnetic resonance imaging measures them."""

import torch
from torch import Tensor

from scorefield.models.measurements.base import Linear
from scorefield.models.measurements.constants import Constant
from scorefield.models.measurements.hartley import PIXELS, hartley
from scorefield.models.measurements.shapes import spatial
from scorefield.models.measurements.svd import SVD, of_equal_values


class Fourier(Linear):
    """y = some columns of an image's Fourier coefficients, as real numbers, (C, H, columns) or (columns,).

    A frequency f is measured together with -f. Their two real numbers are  Re -+ Im  of the unitary Fourier transform.
    They say the same as the complex coefficient. White noise on them is white noise on both its parts.

    Args:
        shape: of images (C, H, W), or of vectors (n,).
        acceleration: the number of columns over that of the measured ones, 1 or more.
        centre: the share of the columns that is measured around frequency 0; the other measured ones are drawn.
        seed: of the draw.

    Raises:
        ValueError: for other shapes, accelerations or shares.
    """

    def __init__(self, shape: tuple[int, ...], acceleration: float = 4.0, centre: float = 0.08, seed: int = 0) -> None:
        super().__init__(shape)
        if len(shape) not in (1, 3):
            raise ValueError(f"expected images (C, H, W) or vectors (n,) for fourier, got {tuple(shape)}: reshape them")
        if not (acceleration >= 1 and 0 <= centre <= 1):
            raise ValueError(
                f"expected an acceleration of 1 or more and a centre from 0 to 1, got {acceleration} and {centre}: "
                "write fourier:acceleration=4,centre=0.08"
            )
        self._dims = PIXELS if len(shape) == 3 else PIXELS[1:]
        self._columns = Constant(_columns(spatial(self.shape)[-1], acceleration, centre, seed))

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], len(self._columns.exact))

    def measure(self, x0: Tensor) -> Tensor:
        return hartley(x0, self._dims).index_select(-1, self._columns.beside(x0))

    def transpose(self, y: Tensor) -> Tensor:
        full = y.new_zeros(len(y), *self.shape).index_copy(-1, self._columns.beside(y), y)
        return hartley(full, self._dims)

    def svd(self) -> SVD:
        return of_equal_values(1.0, self.size, self.shape, self.measured_shape, self.measure, self.transpose)

    def picture(self, y: Tensor) -> Tensor | None:
        """The image whose other coefficients are zero."""
        return self.transpose(y) if len(self.shape) == 3 and self.shape[0] in (1, 3) else None


def _columns(width: int, acceleration: float, centre: float, seed: int) -> Tensor:
    """The measured columns, in order. Each is there with that of the opposite frequency."""
    frequencies = torch.arange(width // 2 + 1)  # from 0 on; the opposite ones follow
    middle = max(round(centre * width), 1)
    low = frequencies[frequencies <= middle // 2]
    high = frequencies[len(low) :]
    high = high[torch.randperm(len(high), generator=torch.Generator().manual_seed(seed))]
    chosen: set[int] = set()
    for place, frequency in enumerate(torch.cat([low, high]).tolist()):
        if place >= len(low) and len(chosen) >= width / acceleration:
            break
        chosen |= {frequency, -frequency % width}
    return torch.tensor(sorted(chosen))
