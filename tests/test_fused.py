"""The compiled loops against PyTorch's own operations in float64, and against the uncompiled path."""

import shutil
from pathlib import Path

import pytest
import torch
from seeded import seeded_normal
from torch import Tensor
from torch.nn.functional import group_norm, silu
from warm import run

from scorefield.models import MLP, UNet
from scorefield.models.layers import fused
from scorefield.models.layers.blocks import compile_network
from scorefield.models.layers.norm import GroupNorm

EPS = 1e-5
SHAPES = ((3, 8, 5, 4), (1, 8, 17, 19), (2, 5, 1, 1), (5, 48, 9, 40))  # 17 * 19 and 9 * 40 pixels: over one block

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def norm(channels: int, groups: int, compiled: bool = True) -> GroupNorm:
    layer = GroupNorm(groups, channels, EPS)
    layer.weight.data = (1 + 0.3 * seeded_normal("weight", (channels,))).float()
    layer.bias.data = (0.3 * seeded_normal("bias", (channels,))).float()
    layer.compiled = compiled
    return layer


def expected(inputs: list[Tensor], groups: int, act: bool, g: Tensor) -> list[Tensor]:
    """Values and gradients in float64."""
    x, weight, bias, scale, shift, added = (tensor.double().requires_grad_() for tensor in inputs)
    y = group_norm(x + added[:, :, None, None], groups, weight, bias, EPS)
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    y = silu(y) if act else y
    return [y, *torch.autograd.grad(y, [x, weight, bias, scale, shift, added], g.double())]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(
    shape: tuple[int, ...], act: bool, dtype: torch.dtype, format_: torch.memory_format
) -> None:
    channels = shape[1]
    layer = norm(channels, groups := {8: 2, 5: 1, 48: 12}[channels])
    x = (0.7 + seeded_normal("x", shape)).to(dtype).contiguous(memory_format=format_).requires_grad_()
    scale, shift, added = ((0.4 * seeded_normal(name, shape[:2])).float().requires_grad_() for name in ("a", "b", "c"))
    g = seeded_normal("g", shape).to(dtype).contiguous(memory_format=format_)
    y = layer.activated(x, told=(scale, shift), added=added, act=act)
    assert y.dtype == dtype
    inputs = [x, layer.weight, layer.bias, scale, shift, added]
    ours = [y, *torch.autograd.grad(y, inputs, g)]
    theirs = expected([tensor.detach() for tensor in inputs], groups, act, g)
    # Some dozen roundings to 24 bits of values up to the largest; with bfloat16 x, g and what is given back have 8.
    tolerance = 4e-6 if dtype == torch.float32 else 2**-6
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.shape == reference.shape
        # What shifts a whole group has no gradient where channels and pixels are one: an absolute bound.
        assert (mine - reference).abs().max() < tolerance * max(1.0, float(reference.detach().abs().max()))


@needs_compiler
@pytest.mark.parametrize(("shift", "added", "outlier"), [(1000.0, 0.0, 0.0), (0.0, 1000.0, 0.0), (0.0, 0.0, 300.0)])
def test_few_digits_are_lost_far_from_zero(shift: float, added: float, outlier: float) -> None:
    x = (shift + seeded_normal("x", (2, 8, 16, 16))).float()
    x[:, :, 0, 0] += outlier
    told = torch.full((2, 8), added)
    y = norm(8, 2).activated(x, added=told, act=False)
    reference = norm(8, 2).double()(x.double() + added)
    # Up to 8 roundings of values up to the largest; where these are 1000 the mean itself is rounded, to 3e-5.
    assert (y - reference).abs().max() < (4e-5 if shift else 5e-7 * reference.abs().max())
    if shift:  # sums about zero lose more
        assert (norm(8, 2, compiled=False)(x) - reference).abs().max() > 1e-3


@needs_compiler
def test_what_is_told_may_be_the_same_for_all_images() -> None:
    x = seeded_normal("x", (3, 8, 4, 4)).float().requires_grad_()
    told = [seeded_normal(name, (1, 8)).float().requires_grad_() for name in ("a", "b", "c")]
    found = []
    for compiled in (False, True):
        y = norm(8, 2, compiled).activated(x, told=(told[0], told[1]), added=told[2])
        found.append([y, *torch.autograd.grad(y, [x, *told], seeded_normal("g", y.shape).float())])
    for plain, compiled in zip(*found, strict=True):
        assert plain.shape == compiled.shape
        assert (plain - compiled).abs().max() < 1e-5 * plain.abs().max()


@needs_compiler
def test_sixteen_bits_are_rounded_to_the_nearest() -> None:
    x = seeded_normal("x", (3, 8, 16, 16)).bfloat16()
    layer = norm(8, 2)
    assert torch.equal(layer.activated(x), layer.activated(x.float()).bfloat16())


@needs_compiler
def test_silu_to_the_ends_of_the_line_and_beyond() -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, 1.0, -20.0, 20.0, -87.5, -104.0, 200.0, -1e10, 1e10]).view(-1, 1, 1, 1)
    layer = norm(1, 1)
    layer.weight.data.zero_()
    # A norm of weight 0 is its bias, which is told image by image.
    y = layer.activated(
        torch.zeros(len(values), 1, 2, 2), told=(torch.zeros(len(values), 1), values[:, :, 0, 0] - layer.bias.detach())
    )
    reference = silu((values - layer.bias.detach()) + layer.bias.detach()).expand_as(y)
    assert torch.allclose(y, reference, rtol=1e-6, atol=1e-27)
    for bad in (float("nan"), float("inf")):
        x = torch.zeros(2, 1, 4, 4)
        x[1, 0, 2, 3] = bad
        y = norm(1, 1).activated(x.requires_grad_())
        assert y[0].isfinite().all()
        assert y[1].isnan().any()
        y.sum().backward()
        assert x.grad is not None
        assert x.grad[1].isnan().any()


@needs_compiler
def test_what_is_dropped_is_what_the_plain_path_drops() -> None:
    x = seeded_normal("x", (4, 8, 6, 6)).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    g, found = seeded_normal("g", x.shape).float(), []
    for compiled in (False, True):
        torch.manual_seed(3)
        y = norm(8, 2, compiled).activated(x, 0.3)
        found.append((y, *torch.autograd.grad(y, x, g)))
    assert 0.2 < float((found[1][0] == 0).float().mean()) < 0.4
    for plain, compiled in zip(*found, strict=True):
        assert (plain - compiled).abs().max() < 1e-5


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits() -> None:
    found, before = [], torch.get_num_threads()
    layer = norm(16, 4)
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        for batch in (2, 5):
            x = seeded_normal("x", (5, 16, 24, 24)).float()[:batch].requires_grad_()
            y = layer.activated(x)
            found.append((batch, y, *torch.autograd.grad(y, [x, layer.weight], y.detach())))
    torch.set_num_threads(before)
    for batch, *tensors in found:
        first = next(other for other in found if other[0] == batch)
        assert all(torch.equal(a, b) for a, b in zip(tensors, first[1:], strict=True))


@needs_compiler
def test_second_derivatives_are_the_plain_paths() -> None:
    found = []
    for compiled in (False, True):
        layer = norm(8, 2, compiled)
        x = seeded_normal("x", (2, 8, 3, 3)).float().requires_grad_()
        added = seeded_normal("added", (2, 8)).float().requires_grad_()
        torch.manual_seed(0)
        y = layer.activated(layer.activated(x.contiguous(memory_format=torch.channels_last), 0.3, added=added))
        first = torch.autograd.grad(y.square().sum(), [x, added, layer.weight], create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(t.square().sum() for t in first), [x, added, layer.weight])])
    for plain, compiled in zip(*found, strict=True):
        assert (plain - compiled).abs().max() < 1e-5 * plain.abs().max()


@needs_compiler
def test_a_network_is_what_it_was_and_forward_mode_passes() -> None:
    torch.manual_seed(0)
    net = UNet(1, width=16, multipliers=(1, 2), blocks=1)
    torch.nn.init.normal_(net.head.weight, std=0.1)
    x, c = seeded_normal("x", (3, 1, 8, 8)).float(), torch.tensor([-1.0, 0.0, 1.0])
    tangent = seeded_normal("tangent", x.shape).float()
    before = net(x, c), torch.func.jvp(lambda x: net(x, c), (x,), (tangent,))[1]
    compile_network(net)
    after = net(x, c), torch.func.jvp(lambda x: net(x, c), (x,), (tangent,))[1]
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fused.library.cache_clear()
    with pytest.raises(ValueError, match=r"expected a C compiler with OpenMP .*no-such-compiler"):
        compile_network(UNet(1, width=8, multipliers=(1,), blocks=1))
    fused.library.cache_clear()
    monkeypatch.setenv("CC", "an 'unfinished")
    with pytest.raises(ValueError, match="expected a C compiler"):
        fused.library(torch.float32)
    arguments = ("--mode=train", "--config=configs/digits.py:vp", f"--workdir={tmp_path / 'run'}")
    done = run(*arguments, "--config.training.compile=true", CC="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "C compiler" in done.stderr


@needs_compiler
def test_half_a_library_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for _ in range(2):
            fused.library.cache_clear()
            fused.library(torch.float32)
            (file,) = (tmp_path / "scorefield").iterdir()
            part = file.with_name("part")
            part.write_bytes(file.read_bytes()[:5000])
            part.rename(file)  # a new file: the one that is loaded stays
    finally:
        fused.library.cache_clear()


def test_a_network_without_such_normalisations_goes_through_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: called.append((type(self), options)))
    compile_network(MLP((2,), width=4, blocks=1), dynamic=False)
    assert called == [(MLP, {"dynamic": False})]
