"""The layer that a bad loss came from, and its batch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.training.checkpoints.atomic import atomic_file
from scorefield.training.distributed.ranks import Ranks
from scorefield.training.distributed.shards import in_shards
from scorefield.training.engine import Step

# A denoiser's losses on a batch, and other numbers.
BatchLoss = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


def find_nonfinite(denoiser: nn.Module, step: Step, loss_of: BatchLoss, precision: torch.dtype) -> str:
    """Run this process's rows again and name the first value that is not finite, in words.

    The order is: a weight; the batch; the output of a module, the innermost first; the gradient of the weights of the
    module nearest to the loss. If all is finite, the answer is the layer with the largest output. It runs without
    `torch.compile`, and with other dropout than in the step. Weights in shards are not rerun: that takes every
    process, and the step may be bad in only some.
    """
    if in_shards(denoiser):
        return "the network is in shards, so its layers were not searched"
    for name, weights in denoiser.named_parameters():
        if weights.requires_grad and not bool(weights.isfinite().all()):
            return f"the weight {name} is not finite"
    outputs = _Outputs()
    x0 = step.batch["x0"]
    autocast = torch.autocast(x0.device.type, precision, enabled=precision != torch.float32)
    devices = [x0.device] if x0.device.type == "cuda" else []
    denoiser.zero_grad(set_to_none=True)  # the step's own have been clipped by a norm that is not finite
    with outputs.of(denoiser), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        with torch.enable_grad(), autocast:
            loss = loss_of(denoiser, step.batch)[0].mean()
        if outputs.bad is None and bool(loss.isfinite()):
            loss.backward()  # type: ignore[no-untyped-call]
    odd = [key for key, value in step.batch.items() if not bool(value.isfinite().all())]
    if outputs.bad is not None:
        source = f"{odd[0]} of example {_first_bad(step.batch[odd[0]])} is not finite, and " if odd else ""
        return f"{source}the first output that is not finite is that of {outputs.bad}"
    for name, module in reversed(outputs.order):
        for key, p in module.named_parameters(recurse=False):
            if p.grad is not None and not bool(p.grad.isfinite().all()):
                return f"the first gradient that is not finite is that of {name}.{key}"
    if not bool(loss.isfinite()):
        return "every layer's output is finite, and the loss is not"
    return f"the largest output is that of {outputs.largest}, {outputs.size:.3g}"


def keep_batch(step: Step, folder: Path, **facts: float) -> Path:
    """Write the batch of a step, so that its loss can be computed again; `torch.load` reads it.

    A dict of x0, eps, times and conditioning as in the step, losses (B,), loss, grad_norm, step, images, and `facts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("bad_batch.pt" if (rank := Ranks.current().rank) == 0 else f"bad_batch.{rank}.pt")
    record: dict[str, Any] = {key: value.detach().cpu() for key, value in step.batch.items()}
    record |= {"losses": step.losses.cpu(), "loss": float(step.loss)}
    record |= {"grad_norm": float(step.grad_norm), "step": step.step, "images": step.images, **facts}
    with atomic_file(path) as part, part.open("wb") as file:
        torch.save(record, file)
    return path


def _first_bad(value: Tensor) -> int:
    return int((~value.isfinite().reshape(len(value), -1).all(1)).int().argmax())


class _Outputs:
    """Hooks on every module record the order in which modules end, the first bad output, and the largest output."""

    def __init__(self) -> None:
        self.order: list[tuple[str, nn.Module]] = []
        self.bad: str | None = None
        self.largest, self.size = "", -1.0

    @contextmanager
    def of(self, denoiser: nn.Module) -> Iterator[None]:
        hooks = [
            module.register_forward_hook(self._hook(name or "the denoiser"))
            for name, module in denoiser.named_modules()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, _: object, output: Any) -> None:
            self.order.append((name, module))
            for tensor in _tensors(output):
                size = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
                if self.bad is None and not bool(tensor.isfinite().all()):
                    self.bad = f"{name} ({type(module).__name__})"
                if size > self.size and next(module.children(), None) is None:
                    self.largest, self.size = f"{name} ({type(module).__name__})", size

        return record


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, (list, tuple)):
        for each in output:
            yield from _tensors(each)
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
