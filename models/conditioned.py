"""A network with a conditioner that is trained with it."""

from typing import Any

from torch import Tensor, nn

from scorefield.models.conditioners.base import READY, Conditioner


class ConditionedNetwork(nn.Module):
    """F(x, c_noise, **raw) = net(x, c_noise, **conditioner(raw)).

    Raw keywords that are absent mean "nothing", and so does `known (B,)` where it is False. Keywords of
    the net itself pass through, and so does what `conditioner.prepare` has made.

    Args:
        net: takes what the conditioner makes: `context (B, M, d)`, `context_mask (B, M)`, `concat (B, c, h, w)`.
        conditioner: of `models.conditioners`.
        required: it was always given its conditioning in training. Without, its output means nothing.

    Raises:
        ValueError: when it is called without the conditioning that is required.
    """

    def __init__(self, net: nn.Module, conditioner: Conditioner, *, required: bool = False) -> None:
        super().__init__()
        self.net, self.conditioner, self.required = net, conditioner, required

    @property
    def conditioning(self) -> tuple[str, ...]:
        """Every keyword of its conditioning, raw and prepared: what guidance leaves out."""
        return *self.conditioner.keywords, *READY

    def forward(self, x: Tensor, c_noise: Tensor, *, known: Tensor | None = None, **raw: Any) -> Tensor:
        """The prediction, in the shape of x."""
        size = (x.shape[-2], x.shape[-1]) if x.ndim == 4 else None
        cond = self.conditioner.prepare({**raw, "known": known}, size)
        if not any(key in cond for key in READY):
            cond |= self._nothing(len(x), size)
        if "concat" in cond:
            cond["concat"] = cond["concat"].to(x)
        output: Tensor = self.net(x, c_noise, **cond)
        return output

    def _nothing(self, batch: int, size: tuple[int, int] | None) -> dict[str, Tensor]:
        if self.required:
            keywords = " and ".join(self.conditioner.keywords)
            raise ValueError(
                f"expected {keywords}, because this network was always given conditioning in training, got none: "
                f"pass cond with {keywords}, a row for each sample"
            )
        return self.conditioner.nothing(batch, size)
