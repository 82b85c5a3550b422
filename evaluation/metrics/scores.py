"""Scores of samples alone: the Inception score of class probabilities, and the Vendi score of features."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from scorefield.evaluation.metrics.estimate import Estimate
from scorefield.evaluation.metrics.rows import float64


def inception_score(probabilities: Tensor, splits: int = 10, seed: int | None = 2020) -> Estimate:
    """The Inception score (Salimans et al. 2016, sec. 4): exp of the mean of KL(p(y|x) | p(y)), 1 .. C.

    It is the mean over splits of the samples. The second number is the standard deviation over splits, as published;
    the standard error of the mean is about 1/sqrt(splits) of it. Fewer samples a split give a lower score.

    Args:
        probabilities: of C classes, (N, C), rows that sum to 1.
        splits: parts of the samples, of N / splits each.
        seed: of the permutation before the split, as torch-fidelity has it; None for consecutive splits, as ADM.

    Raises:
        ValueError: unless these are probabilities of at least `splits` samples.
    """
    (p,) = float64(probabilities, least=splits)
    if float(p.min()) < 0 or float((p.sum(1) - 1).abs().max()) > 1e-3:
        raise ValueError(
            f"expected probabilities, rows that sum to 1, got values from {float(p.min()):g} and sums up to "
            f"{float(p.sum(1).max()):g}: give the softmax of the logits"
        )
    if seed is not None:
        p = p[torch.from_numpy(np.random.RandomState(seed).permutation(len(p)))]
    borders = [i * len(p) // splits for i in range(splits + 1)]
    scores = [_score(p[start:stop]) for start, stop in itertools.pairwise(borders)]
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _score(p: Tensor) -> float:
    """The mean KL divergence is the entropy of the mean less the mean of the entropies."""
    return math.exp(float(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()))


def vendi(features: Tensor) -> float:
    """The Vendi score (Friedman and Dieng 2023, eq. 3): the effective number of different samples, 1 .. N.

    exp of the entropy of the eigenvalues of K / N, with K the cosines between samples. The eigenvalues are those of
    X^T X / N as well, for rows of unit norm: the smaller of both matrices is taken.

    Args:
        features: (N, d).

    Raises:
        ValueError: unless these are finite features, none of them 0.
    """
    (x,) = float64(features)
    norms = x.norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ValueError("expected features with a direction, got rows of zeros: leave those samples out")
    x = x / norms
    matrix = x.T @ x if x.shape[1] < len(x) else x @ x.T
    return math.exp(float(torch.special.entr(torch.linalg.eigvalsh(matrix / len(x)).clamp(min=0)).sum()))
