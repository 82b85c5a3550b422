"""The processes that torchrun started: which one this is, what is its to do, and what all of them know together."""

import atexit
import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=7)  # of a rank that waits for a slower one
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; alone, rank 0 of 1."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, patience: timedelta = PATIENCE) -> "Ranks":
        """Those of torchrun, joined: gloo between CPUs, NCCL between CUDA devices, each with one of its own.

        Args:
            patience: how long a rank waits for the others before it gives up.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1 and not dist.is_initialized():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local < torch.cuda.device_count():
                torch.cuda.set_device(local)
            nccl = torch.cuda.is_available() and dist.is_nccl_available()
            dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=patience)
            atexit.register(_let_go)
        return cls(int(os.environ.get("RANK", "0")) if world > 1 else 0, world)

    @classmethod
    def current(cls) -> "Ranks":
        """Those that have been joined already; alone where none have."""
        joined = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if joined else cls()

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """For the others to come as far."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def leave(self) -> None:
        """Part from the others, when all is done."""
        if self.world > 1:
            self.wait()
            gc.collect()  # DistributedDataParallel is a cycle, which would keep the group
            dist.destroy_process_group()
            _let_go()

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items that are this rank's to do."""
        return items[self.rank :: self.world]

    def rows(self, batch: int, accumulate: int = 1) -> slice:
        """This rank's rows of a batch: one run of them after another, in the order of the ranks.

        Raises:
            ValueError: if the batch does not divide by the ranks and the parts that each takes it in.
        """
        if batch % (self.world * accumulate):
            parts = f" in {accumulate} parts each (training.accumulate)" if accumulate > 1 else ""
            raise ValueError(
                f"expected a batch that {self.world} processes can share evenly{parts}, got {batch}: "
                f"set training.batch to a multiple of {self.world * accumulate}"
            )
        own = batch // self.world
        return slice(self.rank * own, (self.rank + 1) * own)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, which all must ask for; it waits for them, so ask where a record is due."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def together(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all ranks, (world n, ...), which all must ask for, with as many rows each."""
        if self.world == 1:
            return rows
        each = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(each, rows.detach().contiguous())
        return torch.cat(each)

    def collected(self, own: dict[int, Item]) -> dict[int, Item]:
        """What all ranks have, on the first one; nothing on the others. All must ask."""
        if self.world == 1:
            return own
        found: list[dict[int, Item]] | None = [{}] * self.world if self.first else None
        dist.gather_object(own, found)
        return {} if found is None else {i: item for each in found for i, item in each.items()}

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Where a rank has failed, the others say so in one line: its own error is the one to read.

        Raises:
            ValueError: if the connection to another rank is lost.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and (isinstance(error, dist.DistError) or _is_of_gloo(error)):
                raise ValueError(
                    f"process {self.rank} of {self.world} lost the others: see the error of the one that failed first"
                ) from error
            raise


def _let_go() -> None:
    """Let gloo's threads drop their tensors: one that needs the interpreter for it while that ends aborts it."""
    time.sleep(0.1)


def _is_of_gloo(error: RuntimeError) -> bool:
    """Gloo raises nothing more particular than a RuntimeError."""
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset by peer"))


class Agreement:
    """What any rank asks for, known to all of them at the same step, without waiting for one another.

    The answer is one call late, so that it travels while a step is computed: what one rank asks for in its n-th call,
    every rank is told in its (n + 1)-th. Alone, it is told at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent: tuple[Tensor, Any] | None = None

    def __call__(self, asked: int) -> int:
        """The largest number that any rank had asked with by the call before; every rank must call, once a step."""
        if self._ranks.world == 1:
            return asked
        answer = 0
        if self._sent is not None:
            number, work = self._sent
            work.wait()
            answer = int(number)
        number = torch.tensor([asked])
        self._sent = number, dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
        return answer
