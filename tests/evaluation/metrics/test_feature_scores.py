"""Scores of samples alone, at their closed forms."""

import pytest
import torch
from image_files import refused
from seeded import seeded_normal

from scorefield.evaluation.metrics.scores import inception_score, vendi


def test_the_inception_score_of_known_predictions() -> None:
    uniform, sure = torch.full((60, 5), 0.2), torch.eye(5).repeat(12, 1)
    assert inception_score(uniform).value == pytest.approx(1, rel=1e-7)  # of float32's 0.2
    consecutive = inception_score(sure, splits=12, seed=None)
    assert consecutive.value == pytest.approx(5, rel=1e-12) and consecutive.standard_error < 1e-12
    assert inception_score(sure, splits=1).value == pytest.approx(5, rel=1e-12)
    assert 1 < inception_score(sure, splits=12).value < 5  # a permutation leaves no split balanced
    refused("rows that sum to 1", inception_score, torch.full((60, 5), 0.3))


@pytest.mark.parametrize("width", [4, 50])
def test_the_vendi_score_of_orthogonal_groups_is_their_number(width: int) -> None:
    groups = torch.linalg.qr(seeded_normal("turn", (width, width)))[0][:3]
    x = groups.repeat(10, 1) * torch.linspace(0.5, 2, 30)[:, None]
    assert vendi(x) == pytest.approx(3, rel=1e-9)
    refused("rows of zeros", vendi, torch.zeros(3, 2))
