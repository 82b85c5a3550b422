"""Distances of images: LPIPS against the package of that name, the pyramid against its closed forms."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.models.perceptual import BLOCKS, LPIPS, LaplacianPyramid


def vgg16_features() -> nn.Sequential:
    """The layers of torchvision's vgg16().features, with random weights."""
    layers: list[nn.Module] = []
    before = 3
    for block in BLOCKS:
        for width in block:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def package() -> Iterator[types.ModuleType]:
    """The package lpips, without torchvision, of which it takes the list of layers alone."""
    pytest.importorskip("scipy")
    models = types.ModuleType("torchvision.models")
    models.vgg16 = lambda pretrained: types.SimpleNamespace(features=vgg16_features())
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", torchvision)
        patch.setitem(sys.modules, "torchvision.models", models)
        yield pytest.importorskip("lpips")


def images(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.mark.agreement
def test_lpips_is_that_of_its_authors(package: types.ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    torch.save(theirs.state_dict(), tmp_path / "lpips.pth")
    ours = LPIPS(tmp_path / "lpips.pth")
    assert sum(each.numel() for each in ours.trunk.parameters()) == 14_714_688
    assert sum(each.numel() for each in ours.heads) == 1_472
    x, y = images(2, 3, 33, 18).requires_grad_(), images(2, 3, 33, 18, seed=1)
    expected = theirs(x, y).flatten()
    assert_close(ours(x, y), expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(distance.sum(), x)[0] for distance in (ours(x, y), expected)]
    assert_close(*gradients, rtol=1e-4, atol=1e-8)
    assert not ours(y, y).any()
    assert_close(ours(x[:, :1], y[:, :1]), theirs(x[:, :1].repeat(1, 3, 1, 1), y[:, :1].repeat(1, 3, 1, 1)).flatten())

    # A trunk alone, as torchvision's download has it: the heads come from the installed package.
    trunk = {f"features.{name.split('.', 1)[1]}": each for name, each in theirs.net.state_dict().items()}
    torch.save({**trunk, "classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pth")
    assert torch.equal(LPIPS(tmp_path / "vgg16.pth")(x, y), ours(x, y))


def test_lpips_is_never_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    for weights, words in (
        ("", "there is no such file: pass weights=PATH"),
        (tmp_path / "other.pth", "without (26|31) of its 31 tensors"),
        (tmp_path / "text.pth", "does not read"),
        (tmp_path / "absent.pth", "there is no such file"),
    ):
        with pytest.raises(ValueError, match=words) as refusal:
            LPIPS(weights)
        assert "\n" not in str(refusal.value)


def test_lpips_refuses_other_images() -> None:
    lpips = LPIPS.__new__(LPIPS)
    nn.Module.__init__(lpips)
    with pytest.raises(ValueError, match=r"1 or 3 channels and at least 16 pixels a side for LPIPS, got \(1, 4,"):
        lpips(torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="use perceptual=laplacian"):
        lpips(torch.zeros(1, 3, 15, 32), torch.zeros(1, 3, 15, 32))


def test_a_pyramid_separates_what_is_coarse_from_what_is_fine() -> None:
    distance, x = LaplacianPyramid(levels=3), images(2, 5, 16, 24)
    # A constant is in the last level alone.
    assert_close(distance(x, x + torch.tensor([0.3, -0.2])[:, None, None, None]), torch.tensor([0.3, 0.2]))
    # A checkerboard is in the first alone: a binomial filter removes it, but at the edges.
    board = 0.5 * (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64))
    assert_close(
        LaplacianPyramid(levels=1)(board[None, None], 0 * board[None, None]), torch.tensor([0.5]), rtol=0.1, atol=0
    )
    inner = LaplacianPyramid(levels=3)
    edge = inner(board[None, None], 0 * board[None, None])
    assert 0.5 <= float(edge) < 0.56
    assert not distance(x, x).any()
    assert_close(distance(x[:1], 0 * x[:1]), distance(x, 0 * x)[:1])
    assert distance(images(1, 1, 1, 3), images(1, 1, 1, 3, seed=1)).shape == (1,)  # smaller than its levels
    with pytest.raises(ValueError, match="at least 1 level"):
        LaplacianPyramid(0)
