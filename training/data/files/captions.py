"""Captions of image files: NAME.txt beside NAME.png, or lines of a captions.jsonl or metadata.jsonl."""

import json
import posixpath
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from scorefield.training.data.files.images import Item, content_of
from scorefield.training.data.files.names import counted, few

LISTS = ("captions.jsonl", "metadata.jsonl")  # the second one as the package `datasets` has it
FOUND = ("", "none")  # values of the setting `caption` of a reader


def check_setting(caption: str) -> None:
    """Raises ValueError unless the setting is "" or "none"."""
    if caption not in FOUND:
        raise ValueError(f"expected caption to be none, or empty to find captions, got {caption!r}: choose one")


def caption_files(paths: Iterable[str], images: Iterable[str], caption: str = "") -> list[str]:
    """Those of the paths of a set that may hold captions of the images; none with the setting "none"."""
    check_setting(caption)
    paths = list(paths)
    if caption == "none":
        return []
    stems = {posixpath.splitext(path)[0] for path in images}
    beside = [path for path in paths if path.lower().endswith(".txt") and posixpath.splitext(path)[0] in stems]
    return [path for path in paths if posixpath.basename(path).lower() in LISTS] + beside


def with_captions(
    items: Sequence[Item], paths: Sequence[str], files: Mapping[str, Item]
) -> tuple[list[Item], list[str]]:
    """Images with their captions, and lines about them.

    Where most images have a caption, the others get an empty one, and are counted. Where fewer have one, none is used.
    Rows of numbers are no captions, but boxes of a detector, and are left.

    Args:
        items: the images.
        paths: of the images.
        files: the files of `caption_files`, by path.

    Raises:
        ValueError: if a file is not UTF-8, or a list is not lines of JSON with `file_name` and `text`.
    """
    found: dict[str, str] = {}
    for path, file in files.items():
        if posixpath.basename(path).lower() in LISTS:
            found |= _listed(path, file)
    beside = {posixpath.splitext(path)[0]: file for path, file in files.items() if path.lower().endswith(".txt")}
    for path in paths:
        stem = posixpath.splitext(path)[0]
        if path not in found and stem in beside:
            found[path] = _text(beside[stem])
    known = [path for path in paths if found.get(path)]
    if not known:
        return list(items), []
    if all(_is_boxes(found[path]) for path in known):
        line = f"captions not used: those of {counted(len(known), 'image')} are numbers, as of {known[0]}"
        return list(items), [line]
    missing = [path for path in paths if not found.get(path)]
    if len(missing) > len(known):
        return list(items), [f"captions not used: {len(known)} of {len(paths)} images have one, as {known[0]}"]
    lines = [f"captions of {counted(len(known), 'image')}"]
    lines += [f"{counted(len(missing), 'image')} without a caption, read as empty: {few(missing)}"] if missing else []
    return [replace(item, caption=found.get(path, "")) for item, path in zip(items, paths, strict=True)], lines


def one_line(text: str) -> str:
    """A caption without line breaks and spaces around it."""
    return " ".join(text.split())


def _text(file: Item) -> str:
    try:
        return one_line(content_of(file).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: expected a caption in UTF-8, got other bytes: save it as UTF-8") from error


def _listed(path: str, file: Item) -> dict[str, str]:
    """The captions in a list by the path of their image; names in it are below its own folder."""
    found = {}
    for number, line in enumerate(content_of(file).decode("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row.get("text", row.get("caption", ""))
            found[posixpath.normpath(posixpath.join(posixpath.dirname(path), name))] = one_line(text or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{file.name}: expected lines as {{"file_name": "a.png", "text": "a cat"}}, got {line[:60]!r} in line '
                f"{number}: correct it, or leave captions out (caption=none)"
            ) from error
    return found


def _is_boxes(text: str) -> bool:
    """Whether a text is the class and the four sides of a box, or more numbers."""
    try:
        return len([float(word) for word in text.split()]) > 4
    except ValueError:
        return False


def captions_at(items: Sequence[Item], places: Collection[int]) -> list[str] | None:
    """The captions of the images at some places; None if no image of the set has one."""
    if all(item.caption is None for item in items):
        return None
    return [items[place].caption or "" for place in places]
