"""Quantisers of an autoencoder's codes: a learned codebook, and two grids that need none."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from scorefield.models.hyperparameters import save_hyperparameters

CHUNK = 2**24  # distances that are in memory at once
EPS = 1e-5  # the count with which a code stays where it is


@dataclass(frozen=True)
class Quantised:
    """Codes on the points of a quantiser.

    Args:
        z: the points, (B, c, h, w); their gradient passes to the codes unchanged.
        loss: of each example, the mean over its positions, (B,).
        index: of the points, (B, h, w), int64, in 0 .. size - 1.
    """

    z: Tensor
    loss: Tensor
    index: Tensor


class Quantiser(nn.Module):
    """Maps codes z (B, c, h, w) to the nearest of `size` points.

    The gradient passes straight through: that with respect to z is that with respect to the point (van den Oord et al.
    2017, "VQ-VAE", Section 3.2). An example's points and its loss do not depend on the others of its batch.

    Args:
        size: number of points.
        width: channels c of the codes.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size, self.width = size, width

    def forward(self, z: Tensor) -> Quantised:
        """The points, the loss and the index.

        Raises:
            ValueError: if z is not (B, width, h, w).
        """
        if z.ndim != 4 or z.shape[1] != self.width:
            raise ValueError(
                f"expected codes (B, {self.width}, h, w) for {type(self).__name__}, got {tuple(z.shape)}: "
                f"set the autoencoder's code_channels to {self.width}"
            )
        with torch.autocast(z.device.type, enabled=False):  # half precision would choose other points
            exact = z.to(torch.promote_types(z.dtype, torch.float32))
            points = self.quantise(exact)
        return Quantised(points.z.to(z.dtype), points.loss, points.index)

    def quantise(self, z: Tensor) -> Quantised:
        """`forward` in at least float32."""
        raise TypeError(f"expected {type(self).__name__} to have a method quantise: derive it")

    def lookup(self, index: Tensor) -> Tensor:
        """The points (B, c, h, w) of an index (B, h, w)."""
        raise TypeError(f"expected {type(self).__name__} to have a method lookup: derive it")

    def update(self, generator: Generator, all_gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        """Change what does not follow the gradient, by the forward passes in training mode since the last call.

        Training calls it once a step, so neither parts of a batch nor processes change the result.

        Args:
            generator: of the draws, on any device; in the same state on every process.
            all_gather: from the rows of this process to the rows of all.
        """


@save_hyperparameters
class Codebook(Quantiser):
    """The nearest of `size` learned vectors e_k (van den Oord et al. 2017, "VQ-VAE", Eq. 3).

        loss = |sg(e) - z|^2 beta + |e - sg(z)|^2      averaged over channels and positions, sg without gradient

    With a `decay` the vectors follow no gradient, and the second term is absent. Each is the moving average of the
    codes nearest to it (there, Appendix A.1):

        n_k <- d n_k + (1 - d) count_k,   s_k <- d s_k + (1 - d) sum_k,   e_k <- (s_k + eps e_k) / (n_k + eps)

    The published smoothing draws vectors to 0. This one has the mean of its codes as its fixed point. A vector that few
    codes use is restarted: it moves to a code of the batch (Dhariwal et al. 2020, "Jukebox", Section 3.1), drawn with a
    probability proportional to the squared distance from its present vector (as in k-means++). At the first update all
    vectors are restarted, at codes drawn with equal probability.

    Args:
        size: number of vectors.
        width: channels of the codes.
        beta: weight of the commitment of codes to their vectors.
        legacy: the loss in the code of Esser et al. 2021 (VQGAN) and Rombach et al. 2022 (LDM), where beta is at the
            other term: |sg(e) - z|^2 + beta |e - sg(z)|^2.
        decay: of the moving averages; None trains the vectors by their gradient, as VQGAN and LDM do.
        restart: a vector is restarted if its use is below this share of the average use; 0 for never, as released
            codebooks are.

    Raises:
        ValueError: for a size or width below 1, a negative beta, or a decay or restart outside [0, 1).
    """

    weight: Tensor
    use: Tensor
    total: Tensor

    def __init__(
        self,
        size: int = 512,
        width: int = 3,
        beta: float = 0.25,
        *,
        legacy: bool = False,
        decay: float | None = 0.99,
        restart: float = 0.1,
    ) -> None:
        super().__init__(size, width)
        if min(size, width) < 1 or not beta >= 0 or not 0 <= (decay or 0) < 1 or not 0 <= restart < 1:
            raise ValueError(
                "expected a codebook of size and width of at least 1, beta of at least 0, decay and restart within "
                f"[0, 1), got {size}, {width}, {beta}, {decay} and {restart}"
            )
        self.decay, self.restart = decay, restart
        self.commitment, self.following = (1.0, beta) if legacy else (beta, 1.0)
        weight = torch.empty(size, width).uniform_(-1 / size, 1 / size)
        if decay is None:
            self.weight = nn.Parameter(weight)
            self.following_decay = 0.99
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("total", torch.zeros(size, width))
            self.following, self.following_decay = 0.0, decay
        if decay is not None or restart:
            self.register_buffer("use", torch.zeros(size))
        self._gathered: list[tuple[Tensor, Tensor]] = []

    def quantise(self, z: Tensor) -> Quantised:
        vectors = z.permute(0, 2, 3, 1)
        index = self._nearest(vectors.detach().flatten(0, 2)).reshape(vectors.shape[:3])
        if self.training and hasattr(self, "use"):
            self._gathered.append((vectors.detach().flatten(0, 2), index.flatten()))
        points = self.lookup(index).to(z.dtype)
        loss = self.commitment * (points.detach() - z).square().flatten(1).mean(1)
        if self.following:
            loss = loss + self.following * (points - z.detach()).square().flatten(1).mean(1)
        return Quantised(_straight_through(z, points), loss, index)

    def lookup(self, index: Tensor) -> Tensor:
        return self.weight[index].movedim(-1, 1)

    @torch.no_grad()
    def update(self, generator: Generator, all_gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        if not self._gathered:
            return
        codes, index = (all_gather(torch.cat(parts)) for parts in zip(*self._gathered, strict=True))
        self._gathered.clear()
        codes = codes.to(self.weight.dtype)
        count, total = self._sums(codes, index)
        share = 1 - self.following_decay
        weight, use = self.weight, self.use.lerp(count, share)
        if self.decay is not None:
            total = self.total.lerp(total, share)
            weight = (total + EPS * weight) / (use + EPS)[:, None]
        if self.restart:
            weight, use, total = self._restarted(codes, index, weight, use, total, generator)
        valid = codes.isfinite().all()  # a step that is refused must not spoil the codebook
        self.weight.copy_(torch.where(valid, weight, self.weight))
        self.use.copy_(torch.where(valid, use, self.use))
        if self.decay is not None:
            self.total.copy_(torch.where(valid, total, self.total))

    @torch.no_grad()
    def _nearest(self, codes: Tensor) -> Tensor:
        """The index of the vector nearest to each code, (n,): |e|^2 - 2 e z is least."""
        weight = self.weight.detach().to(codes.dtype)
        squares = weight.square().sum(1)
        rows = max(CHUNK // self.size, 1)
        return torch.cat(
            [torch.addmm(squares, part, weight.T, alpha=-2).argmin(1) for part in torch.split(codes, rows)]
        )

    def _sums(self, codes: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """How many codes each vector has, (size,), and their sum, (size, width), always added in the same order."""
        count, total = torch.zeros_like(self.use), torch.zeros_like(self.weight)
        every = torch.arange(self.size, device=index.device)[:, None]
        rows = max(CHUNK // self.size, 1)
        for part, of in zip(torch.split(codes, rows), torch.split(index, rows), strict=True):
            mine = (every == of).to(codes.dtype)
            count += mine.sum(1)
            total += mine @ part
        return count, total

    def _restarted(
        self, codes: Tensor, index: Tensor, weight: Tensor, use: Tensor, total: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors, their use and sums, with little used ones on codes that are far from their own vectors."""
        first, least = self.use.sum() == 0, self.restart * use.mean()
        dead = (use < least) | first
        number = dead.cumsum(0) - 1
        uniform = torch.rand(len(codes), generator=generator, device=generator.device).to(codes.device)
        log_p = torch.where(first, 0.0, (codes - self.weight[index]).square().sum(1).log())
        # The largest of log p + Gumbel noise are draws by p without replacement.
        keys = log_p - (-uniform.log()).log()
        drawn = codes[keys.topk(min(len(codes), self.size)).indices]
        moved = dead & (number < len(drawn))
        place = drawn[number.clamp(0, len(drawn) - 1)]
        weight = torch.where(moved[:, None], place, weight)
        use = torch.where(moved, least, use)
        return weight, use, torch.where(moved[:, None], least * place, total)


@save_hyperparameters
class FSQ(Quantiser):
    """Each channel rounded to one of a few levels (Mentzer et al. 2024, "Finite scalar quantization", Section 3.1).

        z_i -> round(half_i tanh(z_i + shift_i) - offset_i) / floor(L_i / 2)

    with half = (L - 1)(1 + 1e-3) / 2, and, for even L, offset = 1/2 and tanh(shift) = offset / half. The points are
    within [-1, 1]. No loss is needed, and all points are used.

    Args:
        levels: L_i of each channel, as 8, 5, 5, 5 for 1,000 points.

    Raises:
        ValueError: without levels, or for one below 2.
    """

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        levels = tuple(levels)
        if not levels or min(levels) < 2:
            raise ValueError(f"expected levels of at least 2 for each channel, as 8,5,5,5, got {levels}")
        super().__init__(math.prod(levels), len(levels))
        self.levels = levels

    def quantise(self, z: Tensor) -> Quantised:
        levels, below, basis = self._constants(z)
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0).to(z.dtype) / 2
        bounded = half * (z + (offset / half).atanh()).tanh() - offset
        points = bounded.round()
        index = ((points + below).long() * basis).sum(1)
        return Quantised(_straight_through(bounded, points) / below, z.new_zeros(len(z)), index)

    def lookup(self, index: Tensor) -> Tensor:
        levels, below, basis = self._constants(torch.zeros((), device=index.device))
        digits = index[:, None].div(basis, rounding_mode="floor") % levels.long()
        return (digits - below) / below

    def _constants(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The levels, half of them rounded down, and the place value of each channel in the index, (c, 1, 1)."""
        rows = (self.levels, [level // 2 for level in self.levels])
        levels, below = (z.new_tensor(row)[:, None, None] for row in rows)
        # Integers: from 2^24 on, float32 does not have all of them.
        basis = [math.prod(self.levels[:i]) for i in range(self.width)]
        return levels, below, z.new_tensor(basis, dtype=torch.int64)[:, None, None]


@save_hyperparameters
class LFQ(Quantiser):
    """The sign of each channel (Yu et al. 2024, "MAGVIT-v2", Section 3.1).

        loss = commitment mean |z - sg(sign z)|^2 + penalty (E[H(q(c | z))] - H(E[q(c | z)]))

    with q(c_i = 1 | z) = sigmoid(4 z_i / temperature). The bits count as independent (Zhao et al. 2024, "BSQ", Section
    4), so both entropies (nats) are sums over the bits. The second is one of the whole set. It is expanded to first
    order around a moving average of E[q], so an example's loss does not depend on the others of its batch.

    Args:
        bits: channels of a code; there are 2^bits points.
        penalty: weight of the entropies.
        commitment: weight of the commitment of codes to their points.
        temperature: of q; a smaller one makes it nearer to a sign.
        decay: of the moving average.

    Raises:
        ValueError: for bits outside 1 .. 62, a negative weight, a temperature of 0 or less, or a decay outside [0, 1).
    """

    mean: Tensor

    def __init__(
        self,
        bits: int = 10,
        penalty: float = 0.1,
        commitment: float = 0.25,
        temperature: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        if not 1 <= bits <= 62 or min(penalty, commitment) < 0 or not temperature > 0 or not 0 <= decay < 1:
            raise ValueError(
                "expected bits within 1 .. 62, penalty and commitment of at least 0, a positive temperature and a "
                f"decay within [0, 1), got {bits}, {penalty}, {commitment}, {temperature} and {decay}"
            )
        super().__init__(2**bits, bits)
        self.penalty, self.commitment, self.temperature, self.decay = penalty, commitment, temperature, decay
        self.register_buffer("mean", torch.full((bits,), 0.5))
        self._gathered: list[Tensor] = []

    def quantise(self, z: Tensor) -> Quantised:
        points = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        loss = self.commitment * (z - points).square().flatten(1).mean(1)
        if self.penalty:
            logit = 4 * z / self.temperature
            on = logit.sigmoid()
            each = nn.functional.softplus(logit) - logit * on  # the entropy of a bit
            mean = self.mean.to(z.dtype)[:, None, None]
            all_together = mean * (1 / mean).log() + (1 - mean) * (1 / (1 - mean)).log() + (on - mean) * -mean.logit()
            loss = loss + self.penalty * (each - all_together).sum(1).flatten(1).mean(1)
            if self.training:
                self._gathered.append(on.detach().movedim(1, -1).flatten(0, 2))
        basis = 2 ** torch.arange(self.width, device=z.device)
        return Quantised(_straight_through(z, points), loss, ((points > 0) * basis[:, None, None]).sum(1))

    def lookup(self, index: Tensor) -> Tensor:
        bits = torch.arange(self.width, device=index.device)[:, None, None]
        return (2 * (index[:, None].bitwise_right_shift(bits) & 1) - 1).to(self.mean.dtype)

    @torch.no_grad()
    def update(self, generator: Generator, all_gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> None:
        if not self._gathered:
            return
        mean = all_gather(torch.cat(self._gathered).mean(0, keepdim=True)).mean(0).to(self.mean.dtype)
        self._gathered.clear()
        # Away from 0 and 1, where the slope of the entropy is infinite.
        mean = self.mean.lerp(mean, 1 - self.decay).clamp(EPS, 1 - EPS)
        self.mean.copy_(torch.where(mean.isfinite().all(), mean, self.mean))


def _straight_through(z: Tensor, points: Tensor) -> Tensor:
    """The points, with the gradient of z."""
    return z + (points - z).detach()
