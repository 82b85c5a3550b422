"""Arrays of images whose axes have another order than (N, C, H, W): never moved, but named."""

CHANNELS = (1, 3, 4)
SMALLEST = 4  # pixels of a side, above which an axis is not taken for channels
ADD_CHANNEL, MOVE_CHANNELS = "x[:, None]", "x.transpose(0, 3, 1, 2)"


def advice(shape: tuple[int, ...]) -> str:
    """What makes images (C, H, W) of items that look like images (H, W) or (H, W, C); "" for other shapes."""
    if len(shape) == 2 and min(shape) > SMALLEST:
        return f"for grey images, save {ADD_CHANNEL}"
    if len(shape) == 3 and shape[2] in CHANNELS and min(shape[:2]) > SMALLEST:
        return f"for images whose channels are last, save {MOVE_CHANNELS}"
    return ""


def note(shape: tuple[int, ...], levels: int | None) -> list[str]:
    """A line for a reader of arrays that says how it reads items that look like images; or none.

    Items (C, L) of continuous values are series more often than images.
    """
    line = advice(shape)
    if not line or (len(shape) == 2 and levels is None):
        return []
    read = "series of" if len(shape) == 2 else "channels of"
    return [f"items of shape {shape} are read as {shape[0]} {read} {' x '.join(map(str, shape[1:]))} values; {line}"]


def shape_error(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> ValueError:
    """The error of data that has another shape than a run's, with what makes it that shape, if one step does."""
    remedy = "give data of that shape"
    if (1, *got) == expected:
        remedy = f"save {ADD_CHANNEL}"
    elif len(got) == 3 and (got[2], *got[:2]) == expected:
        remedy = f"save {MOVE_CHANNELS}"
    return ValueError(f"expected data of shape {expected}, as this run was trained on, got {got} in {name}: {remedy}")
