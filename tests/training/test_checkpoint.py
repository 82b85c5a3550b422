"""Checkpoints against what happens to disks: flipped bits, torn files, kills and full disks."""

import errno
import hashlib
import math
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from scorefield.models import MLP, Denoiser
from scorefield.models.precondition import eps
from scorefield.training import (
    EMA,
    PowerEMA,
    TrainingState,
    latest,
    latest_valid,
    load,
    load_weights,
    remove_partial,
    save,
)
from scorefield.training.checkpoints.atomic import DiskFullError, atomic_dir, verify, write_tensors

ROOT = Path(__file__).parents[2]


def state_at(images: int = 0, seed: int = 0) -> TrainingState:
    """A state with moments in its optimiser."""
    torch.manual_seed(seed)
    denoiser = Denoiser(MLP((4,), width=16, blocks=2), eps)
    adam = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    for weight in denoiser.parameters():
        weight.grad = torch.randn_like(weight)
    adam.step()
    ema = EMA(denoiser, (0.9, 0.99))
    nn.init.normal_(next(denoiser.parameters()))
    ema.update(denoiser)
    return TrainingState(denoiser, adam, ema, images=images)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    before = save(tmp_path, state_at(8))
    place = save(tmp_path, state_at(16))
    files = sorted(place.iterdir())
    assert {file.name for file in files} == {
        "SHA256SUMS", "ema.safetensors", "ema_1.safetensors", "model.safetensors", "state.pt"
    }  # fmt: skip
    chance = random.Random(0)
    # In proportion to their sizes, as disks do it; and ten in the small list of checksums.
    sizes = [file.stat().st_size for file in files]
    places = [*chance.choices(files, sizes, k=30), *[place / "SHA256SUMS"] * 10]
    for file in places:
        bit = chance.randrange(8 * file.stat().st_size)
        flip(file, bit)
        result, notes = latest_valid(tmp_path)
        assert result == before, (file, bit)
        assert len(notes) == 1 and str(place) in notes[0] and before.name not in notes[0]
        with pytest.raises(ValueError, match=str(place)):
            load(place, state_at())
        flip(file, bit)
    assert latest_valid(tmp_path) == (place, [])


def test_bits_of_the_list_of_checksums_count(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "1") as part:
        (part / "b.txt").write_bytes(b"abc")
        (part / "c.txt").write_bytes(b"abc")  # alike, and their names a bit apart: one line could pass for the other
    sums = tmp_path / "1" / "SHA256SUMS"
    assert sums.read_text().splitlines()[1] == f"{hashlib.sha256(b'abc').hexdigest()}  c.txt"
    for bit in range(0, 8 * sums.stat().st_size, 3):
        flip(sums, bit)
        assert verify(tmp_path / "1"), bit
        flip(sums, bit)
    assert verify(tmp_path / "1") is None
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "1", capture_output=True, check=False)
    assert done.returncode == 0


def test_torn_missing_and_emptied_files_are_named_and_none_whole_is_an_error(tmp_path: Path) -> None:
    place = save(tmp_path, state_at(8))
    file = place / "ema.safetensors"
    content = file.read_bytes()
    for damaged in (content[:1000], b"", content + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"^no checkpoint in [^\n]* is valid, [^\n]*ema\.safetensors does not match"
        ):
            latest_valid(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=r"ema\.safetensors is missing"):
        latest_valid(tmp_path)
    assert latest_valid(tmp_path / "nowhere") == (None, [])


def test_a_damaged_checkpoint_is_renamed_and_does_not_count_among_the_newest(tmp_path: Path) -> None:
    save(tmp_path, state_at(8))
    flip(save(tmp_path, state_at(16)) / "state.pt", 77)
    assert latest_valid(tmp_path, rename_damaged=True)[0] == tmp_path / "0000000008"
    save(tmp_path, state_at(12), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0000000012", "0000000016.damaged"]


def test_one_of_an_earlier_version_loads_and_says_so(tmp_path: Path) -> None:
    old = state_at(24)
    place = save(tmp_path, old)
    saved = torch.load(place / "state.pt", weights_only=True)
    own = saved.pop("ranks")[0]
    del saved["version"], saved["extra"]
    torch.save(
        {**saved, "generator": own["generator"], "torch_rng": own["torch"], "cuda_rng": None}, place / "state.pt"
    )
    (place / "SHA256SUMS").unlink()
    result, notes = latest_valid(tmp_path)
    assert result == place and "unverified" in notes[0]
    state = state_at(seed=1)
    assert load(place, state) == {}
    assert state.images == 24
    # One of this version has lost its checksums to something.
    unbroken = save(tmp_path, state_at(32))
    (unbroken / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA256SUMS is missing"):
        load(unbroken, state_at())


def test_one_with_the_names_of_a_denoiser_resumes_to_the_bit(tmp_path: Path) -> None:
    # Version 2: files named after the denoiser's own tensors, and one optimiser.
    old, new = state_at(24), state_at(seed=1)
    place = save(tmp_path, old)
    saved = torch.load(place / "state.pt", weights_only=True)
    del saved["more_optimizers"]
    with atomic_dir(tmp_path / "0000000032") as part:
        for name, model in {"model": old.model, "ema": old.ema.models[0], "ema_1": old.ema.models[1]}.items():
            bare = {key.removeprefix("denoiser."): weight for key, weight in model.state_dict().items()}
            assert not any(key.startswith("denoiser.") for key in bare)
            write_tensors(part / f"{name}.safetensors", bare)
        torch.save({**saved, "version": 2, "images": 32}, part / "state.pt")
    assert latest_valid(tmp_path) == (tmp_path / "0000000032", [])
    load(tmp_path / "0000000032", new)
    assert new.images == 32
    for ours, theirs in ((old.model, new.model), *zip(old.ema.models, new.ema.models, strict=True)):
        assert all(torch.equal(w, theirs.state_dict()[name]) for name, w in ours.state_dict().items())
    for a, b in zip(old.optimizer.state.values(), new.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("lost", ["the list", "a line of the list", "all"])
def test_lost_checksums_or_weights_are_damage_too(lost: str, tmp_path: Path) -> None:
    first, second = (save(tmp_path, state_at(images), keep=3) for images in (8, 16))
    sums = second / "SHA256SUMS"
    if lost == "the list":
        sums.unlink()
    elif lost == "a line of the list":
        sums.write_text("".join(sums.read_text().splitlines(keepends=True)[:-1]))
    else:
        for file in second.iterdir():
            file.unlink()
    result, notes = latest_valid(tmp_path)
    assert result == first and str(second) in notes[0]


def test_everything_comes_back(tmp_path: Path) -> None:
    state, extra = state_at(40), {"losses": [0.1, 0.2], "window": torch.arange(3)}
    state.step = 5
    power = PowerEMA(state.denoiser, (0.05,))
    nn.init.ones_(next(state.denoiser.parameters()))
    power.update(state.denoiser, 40, 8)
    random.seed(3), np.random.seed(4), torch.manual_seed(5), state.generator.manual_seed(6)
    random.gauss(0, 1), np.random.normal(), torch.randn(3)  # Python and NumPy keep half of a pair of normals
    place = save(tmp_path, state, power=power, extra=extra)

    def drawn(state: TrainingState) -> list[float]:
        own = torch.rand(1, generator=state.generator)
        return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), float(torch.randn(1)), own]

    first = drawn(state)
    other = state_at(seed=9)
    other_power = PowerEMA(other.denoiser, (0.05,))
    came = load(place, other, other_power)
    assert drawn(other) == first
    assert came["losses"] == [0.1, 0.2] and torch.equal(came["window"], torch.arange(3))
    assert (other.step, other.images, other.ema.updates) == (5, 40, 1)
    pairs = [(state.denoiser, other.denoiser), *zip(state.ema.models, other.ema.models, strict=True)]
    for ours, theirs in (*pairs, *zip(power.models, other_power.models, strict=True)):
        for name, weight in ours.state_dict().items():
            assert torch.equal(weight, theirs.state_dict()[name]), name
    for a, b in zip(state.optimizer.state.values(), other.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    second = state_at()
    load_weights(place, second.denoiser, "ema_1")
    assert torch.equal(next(second.denoiser.parameters()), next(state.ema.models[1].parameters()))


class Masked(nn.Module):
    """A perceptron with an infinite buffer, as masks of attention are, and one that half precision cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP((4,), width=16, blocks=2)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf, math.nan]))
        self.register_buffer("levels", torch.tensor([1e5, 1.0001]))
        self.frozen = nn.Parameter(torch.tensor([-math.inf]), requires_grad=False)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        output: Tensor = self.net(x, c_noise)
        return output


def test_only_weights_that_are_trained_and_their_averages_must_be_finite(tmp_path: Path) -> None:
    state = TrainingState(Denoiser(Masked(), eps))
    power = PowerEMA(state.model)
    place = save(tmp_path, state, power=power)
    assert load_file(place / "ema.safetensors")["denoiser.net.mask"].tolist()[:2] == [0.0, -math.inf]
    stored = load_file(power.store(tmp_path, 0) / "power_0.05.safetensors")
    assert torch.equal(stored["denoiser.net.levels"], state.model.denoiser.net.levels)
    assert stored["denoiser.net.net.head.weight"].dtype == torch.float16
    for model, name in ((state.model, "model"), (state.ema.model, "ema"), (power.models[1], "power_0.1")):
        weight = model.denoiser.net.net.head.bias.detach()
        weight[1] = math.nan
        state.images += 8
        with pytest.raises(ValueError, match=rf"infinity in denoiser.net.net.head.bias of {name} after {state.images}"):
            save(tmp_path, state, power=power)
        weight[1] = 0.0


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("part", ["net", "net.blocks.0", "denoiser"])
def test_a_compiled_module_and_a_plain_one_read_each_others_checkpoints(
    part: str, before: bool, tmp_path: Path
) -> None:
    def made(seed: int, compiled: bool) -> TrainingState:
        torch.manual_seed(seed)
        denoiser: nn.Module = Denoiser(MLP((4,), width=16, blocks=2), eps)
        nn.init.normal_(denoiser.get_submodule("net.head").weight)
        if compiled and part == "denoiser":
            denoiser = torch.compile(denoiser)
        elif compiled:
            denoiser.set_submodule(part, torch.compile(denoiser.get_submodule(part)))
        return TrainingState(denoiser)

    old, new = made(0, before), made(1, not before)
    place = save(tmp_path, old)
    assert "_orig_mod" not in " ".join(load_file(place / "model.safetensors"))
    weights = [weight.clone() for weight in old.model.parameters()]
    load(place, new)
    assert all(map(torch.equal, weights, new.model.parameters()))
    # Files of earlier versions and of others have the names of wrappers.
    wrapped = {f"denoiser._orig_mod.module.{name[9:]}": w for name, w in load_file(place / "model.safetensors").items()}
    write_tensors(place / "other.safetensors", wrapped)
    for module in (made(2, not before).model, made(3, before).model.denoiser):
        load_weights(place, module, "other")
        assert all(map(torch.equal, weights, module.parameters()))


def test_the_newest_and_one_of_every_so_many_images_are_kept(tmp_path: Path) -> None:
    for images in range(40, 441, 40):
        save(tmp_path, state_at(images), keep=2, keep_every=100)
    # The first at or after 100, 200, 300 and 400; and the last two.
    assert [int(path.name) for path in sorted(tmp_path.iterdir())] == [120, 200, 320, 400, 440]
    with pytest.raises(ValueError, match="at least 1"):
        save(tmp_path, state_at(480), keep=0)


@pytest.mark.parametrize("where", ["write_tensors", "torch.save", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    place = save(tmp_path, state_at(8))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    targets = {
        "write_tensors": "scorefield.training.checkpoints.checkpoint.write_tensors",
        "torch.save": "torch.save", "fsync": "os.fsync",
        "rename": "pathlib.Path.rename",
    }  # fmt: skip
    for images in (8, 16):  # the second time over a checkpoint of the same images, the first over none
        with monkeypatch.context() as patched:
            patched.setattr(targets[where], full)
            with pytest.raises(DiskFullError, match=r"no room for .*" + f"{images:010d}"):
                save(tmp_path, state_at(images, seed=1))
        assert [path.name for path in tmp_path.iterdir()] == [place.name]
        assert verify(place) is None


def test_a_real_limit_on_files_is_a_full_disk(tmp_path: Path) -> None:
    # The kernel's own error, through safetensors' place and through torch.save's, which loses its reason.
    def limited(size: int) -> str:
        """What a process says that may not write files of this size."""
        child = os.fork()
        if child == 0:
            message = "saved"
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                save(tmp_path / "run", state_at(16))
            except BaseException as error:
                message = repr(error)
            (tmp_path / "message").write_text(message)
            os._exit(0)
        os.waitpid(child, 0)
        return (tmp_path / "message").read_text()

    place = save(tmp_path / "run", state_at(8))
    weights, state = ((place / name).stat().st_size for name in ("model.safetensors", "state.pt"))
    for size in (weights - 1, state - 1):  # the second is larger than all weights' files
        assert size > 0
        assert limited(size).startswith("DiskFullError(27, 'no room for")
        assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert verify(place) is None


def test_what_a_kill_leaves_is_cleared_and_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    save(tmp_path, state_at(8))
    place = save(tmp_path, state_at(16))
    (tmp_path / ".0000000024.part").mkdir()
    (tmp_path / ".0000000024.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "0000000008").rename(tmp_path / ".0000000008.gone")
    place.rename(tmp_path / ".0000000016.old")  # killed between the two renames that replace a checkpoint
    assert latest(tmp_path) is None
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0000000016"]
    assert latest_valid(tmp_path) == (place, [])


def test_tensors_of_all_kinds_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in kinds}
    tensors["last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors["number"], tensors["none"] = torch.tensor(3.5), torch.zeros(0, 4)
    write_tensors(tmp_path / "a.safetensors", tensors)
    result = load_file(tmp_path / "a.safetensors")
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert result[name].dtype == tensor.dtype and torch.equal(result[name], tensor), name
    write_tensors(
        tmp_path / "b.safetensors",
        {"w": tensors["last"], "n": torch.tensor(2)},
        dict.fromkeys(("w", "n"), torch.float16),
        images=3,
    )
    half = load_file(tmp_path / "b.safetensors")
    assert torch.equal(half["w"], tensors["last"].half()) and half["n"].dtype == torch.int64


def test_writing_and_reading_take_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    # 64 tensors of 2 MiB, in channels-last, which a file cannot hold as they are: 128 MiB of weights.
    code = f"""
import resource, torch, pathlib
from scorefield.training.checkpoints.checkpoint import load_weights
from scorefield.training.checkpoints.atomic import write_tensors
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.ParameterList([torch.ones(128, 64, 8, 8).to(memory_format=torch.channels_last) for _ in range(64)])
net, folder = Net(), pathlib.Path({str(tmp_path)!r})
used = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
write_tensors(folder / "ema.safetensors", net.state_dict())
print(peak() - before)
"""  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 32  # some tensors' worth and what Python takes, a quarter of the weights
