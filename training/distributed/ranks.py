"""The processes that torchrun started: this one's rank, its share of the work, and exchange with the others."""

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

TIMEOUT = timedelta(days=7)  # after which a rank that waits for a slower one fails
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among the processes that torchrun started; without torchrun, rank 0 of 1."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, timeout: timedelta = TIMEOUT) -> "Ranks":
        """Join the processes of torchrun: gloo between CPUs, NCCL between CUDA devices, one device a process.

        Args:
            timeout: after which a rank that waits for the others fails.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1 and not dist.is_initialized():
            local = int(os.environ.get("LOCAL_RANK", "0"))
            if local < torch.cuda.device_count():
                torch.cuda.set_device(local)
            nccl = torch.cuda.is_available() and dist.is_nccl_available()
            dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo", timeout=timeout)
            atexit.register(_let_threads_end)
        return cls(int(os.environ.get("RANK", "0")) if world > 1 else 0, world)

    @classmethod
    def current(cls) -> "Ranks":
        """The processes that have joined already; rank 0 of 1 where none have."""
        joined = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if joined else cls()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1))

    def shutdown(self) -> None:
        """Leave the process group, after a barrier."""
        if self.world > 1:
            self.barrier()
            gc.collect()  # DistributedDataParallel is a cycle, which would keep the group
            dist.destroy_process_group()
            _let_threads_end()

    def shard(self, items: Sequence[Any]) -> Sequence[Any]:
        """This rank's share of the items: every `world`-th."""
        return items[self.rank :: self.world]

    def rows(self, batch: int, accumulate: int = 1) -> slice:
        """This rank's rows of a batch; the slices of all ranks follow one another.

        Raises:
            ValueError: if the batch does not divide by `world * accumulate`.
        """
        if batch % (self.world * accumulate):
            parts = f" in {accumulate} parts each (training.accumulate)" if accumulate > 1 else ""
            raise ValueError(
                f"expected a batch that divides evenly between {self.world} processes{parts}, got {batch}: "
                f"set training.batch to a multiple of {self.world * accumulate}"
            )
        own = batch // self.world
        return slice(self.rank * own, (self.rank + 1) * own)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks; every rank must call, and waits for the others."""
        if self.world == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (n, ...) of all ranks, (world n, ...); every rank must call, with the same n."""
        if self.world == 1:
            return rows
        each = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(each, rows.detach().contiguous())
        return torch.cat(each)

    def gather(self, own: dict[int, Item]) -> dict[int, Item]:
        """The items of all ranks, on the first one; nothing on the others. Every rank must call."""
        if self.world == 1:
            return own
        every: list[dict[int, Item]] | None = [{}] * self.world if self.first else None
        dist.gather_object(own, every)
        return {} if every is None else {i: item for each in every for i, item in each.items()}

    def all_gather_object(self, own: Item) -> list[Item]:
        """The objects of all ranks, in their order; every rank must call."""
        if self.world == 1:
            return [own]
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, own)
        return every

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Report a lost connection in one line, since the error to read is that of the rank that failed.

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


def _let_threads_end() -> None:
    """Give gloo's threads time to drop their tensors: a thread that does so while Python ends aborts the process."""
    time.sleep(0.1)


def _is_of_gloo(error: RuntimeError) -> bool:
    """Gloo raises plain RuntimeErrors."""
    return any(word in str(error) for word in ("gloo", "Connection closed by peer", "Connection reset by peer"))


class Agreement:
    """The largest number that any rank requested, known to all ranks at the same step.

    The answer comes one call late, so that it travels while a step is computed: a request in the n-th call is answered
    on every rank in the (n + 1)-th. A single process is answered at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._sent: tuple[Tensor, Any] | None = None

    def __call__(self, request: int) -> int:
        """The largest request of any rank up to the call before; every rank must call, once a step."""
        if self._ranks.world == 1:
            return request
        answer = 0
        if self._sent is not None:
            number, work = self._sent
            work.wait()
            answer = int(number)
        number = torch.tensor([request])
        self._sent = number, dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True)
        return answer
