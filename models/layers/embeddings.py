"""Embeddings of the noise level, the class and the place, and Fourier features of the input."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Angular frequencies, (features / 2,), for each unit of the noise level.


def smooth(features: int) -> Tensor:
    """Geometric from 1/4 to 32 radians a unit of c_noise = log(sigma / alpha) / 4, which spans about -2 to 2.

    The network stays smooth in the noise level, and ODE solvers can take long steps.
    """
    return torch.logspace(-2, 5, features // 2, base=2.0)


def timesteps(features: int) -> Tensor:
    """Geometric from 1 down to 1/10,000 radians a timestep of 0 .. 999 (Ho et al. 2020, Appendix B)."""
    return 10_000.0 ** (-torch.arange(features // 2) / max(features // 2 - 1, 1))


def open_timesteps(features: int) -> Tensor:
    """The same, ending one frequency before 1/10,000 (Dhariwal and Nichol 2021; Peebles and Xie 2023)."""
    return 10_000.0 ** (-torch.arange(features // 2) / (features // 2))


def gaussian(features: int, scale: float = 16.0) -> Tensor:
    """Random, 2 pi scale N(0, 1) radians a unit of log sigma (Tancik et al. 2020; Song et al. 2021, Appendix H.1)."""
    return 2 * math.pi * scale * torch.randn(features // 2)


FREQUENCIES = {"smooth": smooth, "timesteps": timesteps, "open_timesteps": open_timesteps, "gaussian": gaussian}


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level, and a two-layer perceptron on them; the class, if any, is added.

    Args:
        features: how many sines and cosines, even.
        width: size of the embedding, (B, width).
        num_classes: with it, `label (B,)` in 0 .. num_classes - 1 is embedded too; num_classes itself,
            and no label at all, mean "unknown".
        frequencies: "smooth" for c_noise = log(sigma / alpha) / 4, "timesteps" or "open_timesteps" for 0 .. 999,
            "gaussian" for log sigma: random ones, which are kept with the weights.
        label_first: the class is added to the sines and cosines (EDM's DDPM++), not to what the perceptron gives.
        code_size: with it, a linear layer of a latent code (B, code_size) is added to what the perceptron gives.

    Raises:
        ValueError: for unknown frequencies.
    """

    frequencies: Tensor

    def __init__(
        self,
        features: int,
        width: int,
        num_classes: int | None = None,
        frequencies: str = "smooth",
        label_first: bool = False,
        code_size: int | None = None,
    ) -> None:
        super().__init__()
        if frequencies not in FREQUENCIES:
            raise ValueError(f"expected frequencies to be one of {', '.join(FREQUENCIES)}, got {frequencies!r}")
        waves = 2 * (features // 2)
        self.label_first = label_first
        self.register_buffer("frequencies", FREQUENCIES[frequencies](features), persistent=frequencies == "gaussian")
        self.perceptron = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))
        self.labels = None if num_classes is None else nn.Embedding(num_classes + 1, waves if label_first else width)
        self.codes = None if code_size is None else nn.Linear(code_size, width)

    def forward(self, c_noise: Tensor, label: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """The embedding, (B, width).

        Raises:
            ValueError: if a label is given to a network without classes, or a code to one without codes, or none to one
                with codes.
        """
        if (self.codes is None) != (code is None):
            expected, got = ("no code", "one") if self.codes is None else ('cond={"code": code}', "no code")
            raise ValueError(f"expected {expected}, got {got}: a network made with code_size takes a code, and must")
        emb = self._of_level(c_noise, label)
        return emb if self.codes is None or code is None else emb + self.codes(code.to(self.codes.weight.dtype))

    def _of_level(self, c_noise: Tensor, label: Tensor | None) -> Tensor:
        phase = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        waves = torch.cat([phase.sin(), phase.cos()], 1).to(next(self.perceptron.parameters()).dtype)
        if self.labels is None:
            if label is not None:
                raise ValueError("expected no label: the network was made without num_classes; got one: leave it out")
            embedding: Tensor = self.perceptron(waves)
            return embedding
        known = self.labels(self._known(label, len(c_noise)))
        output: Tensor = self.perceptron(waves + known) if self.label_first else self.perceptron(waves) + known
        return output

    def _known(self, label: Tensor | None, batch: int) -> Tensor:
        assert self.labels is not None
        unknown = self.labels.num_embeddings - 1
        return torch.full((batch,), unknown, device=self.labels.weight.device) if label is None else label


def positions_of(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """What tells tokens at places apart, (rows columns, width): sines and cosines of the column, and then of the row.

    Frequencies are geometric from 1 down to one before 1/10,000 radians a place (Peebles and Xie 2023, Section 3.2).
    """
    quarter, dtype = width // 4, torch.promote_types(like.dtype, torch.float32)
    line = torch.arange(max(rows, columns, quarter), device=like.device, dtype=dtype)
    phases = line[:, None] * 10_000.0 ** (-line[:quarter] / quarter)
    waves = torch.cat([phases.sin(), phases.cos()], 1).to(like.dtype)
    across, down = waves[:columns].expand(rows, -1, -1), waves[:rows, None].expand(-1, columns, -1)
    return torch.cat([across, down], 2).flatten(0, 1)


def fourier_features(x: Tensor, powers: Sequence[int]) -> list[Tensor]:
    """The sines and then the cosines of 2^n pi x for each power n, of x's shape each (Kingma et al. 2021, App. C)."""
    phases = [2**n * math.pi * x for n in powers]
    return [*(phase.sin() for phase in phases), *(phase.cos() for phase in phases)]
