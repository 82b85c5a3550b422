"""Power-function averaging profiles, and combinations of them (Karras et al. 2024, arXiv 2312.02696).

    p_{t,gamma}(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)  on [0, t]                        (Section 3.1)

has mean t (gamma + 1) / (gamma + 2) and standard deviation sigma_rel t. A profile is named by sigma_rel, the length of
the average relative to that of the training.
"""

from collections.abc import Sequence

import numpy as np

# At gamma = 0, the plain mean over training. Longer averages would weigh the beginning most.
LONGEST = 12**-0.5


def sigma_rel(gamma: float) -> float:
    """sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)."""
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


def exponent(sigma_rel: float) -> float:
    """The gamma of a relative length: the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.

    Raises:
        ValueError: unless the length is within (0, 12^(-1/2)].
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ValueError(f"expected a relative EMA length within (0, {LONGEST:.4f}], as 0.05, got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max(), 0.0))


def beta(gamma: float, images: int, batch: int) -> float:
    """(1 - batch / images)^(gamma + 1): the share of the old average in a step that ends at `images`."""
    return float((1 - batch / images) ** (gamma + 1))


def inner_product(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """The integral of p_{a} p_{b} over [0, min(t_a, t_b)], in 1 / t (Appendix C).

    (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) min^(gamma_a + gamma_b + 1) t_a^-(gamma_a + 1) t_b^-(gamma_b + 1)
    """  # noqa: E501
    if t_a > t_b:
        t_a, gamma_a, t_b, gamma_b = t_b, gamma_b, t_a, gamma_a
    overlap = float((t_a / t_b) ** gamma_b / t_b)  # the powers of t, without overflow
    return float((gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * overlap)


def coefficients(snapshots: Sequence[tuple[float, float]], t: float, gamma: float) -> tuple[np.ndarray, float]:
    """The combination of averages whose profile is nearest to p_{t,gamma} in least squares (Appendix C, Algorithm 3).

    Args:
        snapshots: the (t, gamma) of each stored average.
        t: of the target profile.
        gamma: of the target profile.

    Returns:
        The coefficients, and the distance between the combination and the target over the target's norm.
    """
    gram = np.array([[inner_product(*a, *b) for b in snapshots] for a in snapshots])
    towards = np.array([inner_product(*a, t, gamma) for a in snapshots])
    scale = np.sqrt(np.diag(gram))  # profiles of norm 1 are better conditioned
    x = np.linalg.lstsq(gram / np.outer(scale, scale), towards / scale, rcond=1e-13)[0] / scale
    norm = inner_product(t, gamma, t, gamma)
    left = norm - 2 * x @ towards + x @ gram @ x
    return x, float(np.sqrt(max(left, 0.0) / norm))
