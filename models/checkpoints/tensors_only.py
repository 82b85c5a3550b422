"""Pickles of tensors and of other things, of which the tensors alone are kept: a `pickle_module` of `torch.load`.

Checkpoints of Lightning hold objects of classes that are not installed here. None of these is imported or called.
"""

import pickle
from typing import IO, Any

# What makes tensors and keeps them in order; storages are torch's own matter.
ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class Skipped:
    """Stands for any object of another class, whatever a pickle does with it."""

    def __new__(cls, *args: Any, **keywords: Any) -> "Skipped":
        return super().__new__(cls)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __call__(self, *args: Any, **keywords: Any) -> "Skipped":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """A list's."""

    def extend(self, values: Any) -> None:
        """A list's."""

    def add(self, value: Any) -> None:
        """A set's."""


class Unpickler(pickle.Unpickler):
    """Finds what makes tensors, and `Skipped` in the place of all else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) in ALLOWED:
            return super().find_class(module_name, global_name)
        return Skipped


def load(file: IO[bytes], **keywords: Any) -> Any:
    """What a file holds, as `pickle.load` with this `Unpickler`."""
    return Unpickler(file, **keywords).load()
