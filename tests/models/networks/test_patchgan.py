"""The patch discriminator: published sizes, and images that do not see each other."""

import pytest
import torch
from torch.testing import assert_close

from scorefield.models.networks.patchgan import PatchGAN


def test_parameters_are_those_of_the_published_discriminators() -> None:
    sizes = [sum(weight.numel() for weight in PatchGAN(3, layers).parameters()) for layers in (3, 2)]
    assert sizes == [2_765_633, 663_361]


def test_a_logit_sees_its_patch_of_its_image_alone() -> None:
    torch.manual_seed(0)
    net, images = PatchGAN(2, layers=2, width=8).train(), torch.randn(3, 2, 24, 40)
    assert net(images).shape == (3, 1, 4, 8)
    assert_close(net(images)[:1], net(images[:1]))
    for module in net.modules():  # without the normalisation, which is over the image
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    images.requires_grad_()
    net(images)[0, 0, 1, 4].backward()
    rows, columns = (images.grad[0].abs().sum((0, axis)).nonzero() for axis in (2, 1))
    assert len(columns) == 34  # the receptive field; the rows' is cut at the edge
    assert len(rows) < 34 and not images.grad[1:].any()


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 24 pixels a side for the discriminator, got"):
        PatchGAN(1, width=4)(torch.zeros(1, 1, 23, 32))
    with pytest.raises(ValueError, match="at least 1, got 0, 3 and 64"):
        PatchGAN(0)
