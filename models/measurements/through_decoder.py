"""A measurement of images, for the codes of an autoencoder."""

from collections.abc import Callable

from torch import Tensor

from scorefield.models.measurements.base import Measurement


class ThroughDecoder(Measurement):
    """A(G(z)), of codes z: a measurement A of the images G(z) that a decoder makes of them. It is not linear.

    Args:
        measurement: A, of images.
        decode: G, codes (B, *D) to images.
        shape: of the codes of one sample, *D.
    """

    def __init__(self, measurement: Measurement, decode: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.measurement, self.decode = measurement, decode

    @property
    def measured_shape(self) -> tuple[int, ...]:
        return self.measurement.measured_shape

    def measure(self, x0: Tensor) -> Tensor:
        y: Tensor = self.measurement(self.decode(x0))
        return y

    def picture(self, y: Tensor) -> Tensor | None:
        return self.measurement.picture(y)
