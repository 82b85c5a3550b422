"""Captions, boxes and maps from files: .npz, folders, archives, shards, sets of a hub."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from image_files import grey, png_bytes, refused, save, write_shard

from scorefield.configs import build
from scorefield.training.data import Dataset, archive, array, folder, shards, whole_array

COUNT = 20
X = np.arange(COUNT * 12, dtype=np.uint8).reshape(COUNT, 1, 3, 4)
WORDS = np.array([f"number {i}" for i in range(COUNT)])
BOXES = np.tile(np.array([1, 0, 0.25, 0.5, 1]), (COUNT, 2, 1))


def captions(data: Dataset) -> list[str]:
    return data.cond["caption"].tolist() if data.cond else []


def test_an_npz_has_its_conditions_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, caption=WORDS, boxes=BOXES, map=X[:, 0].astype(np.int64), other=X)
    train, test = array(path), array(path, "test")
    for data in (train, test):
        numbers = data.x[:, 0, 0, 0] // 12
        assert captions(data) == [f"number {i}" for i in numbers]
        assert np.array_equal(data.cond["map"], data.x[:, 0]) and data.cond["boxes"].dtype == np.float32
    assert train.notes == ("training on x with caption and boxes and map, other not used",)
    plain = array(path, conditions=False)
    assert not plain.cond and plain.fingerprint != train.fingerprint
    assert captions(whole_array(path, 256, conditions=True)) == WORDS.tolist() and not whole_array(path, 256).cond


def test_the_conditions_of_an_npz_belong_to_their_split(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x_train=X, x_test=X[:5], captions_train=WORDS, captions_test=WORDS[:5])
    assert captions(array(path, "test")) == WORDS[:5].tolist() and captions(array(path)) == WORDS.tolist()


def test_arrays_that_only_share_a_name_are_left(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, caption=WORDS[:3], boxes=np.zeros((), np.float32))
    assert not array(tmp_path / "a.npz").cond
    np.savez(tmp_path / "b.npz", map=X)  # the data
    assert np.array_equal(whole_array(tmp_path / "b.npz", 256).x, X)
    np.savez(tmp_path / "c.npz", x=X, caption=WORDS.astype(object))
    refused("expected 'caption' as text of NumPy's str, got Python objects: save it as dtype=str", array,
            tmp_path / "c.npz")  # fmt: skip


def test_old_configurations_read_no_conditions() -> None:
    def saved(name: str, **more: Any) -> Any:
        return build.modern_config({"data": {"name": name, "path": "a", **more}})["data"]

    assert saved("array", label_key="").conditions is False and saved("array").conditions is True
    assert saved("folder", corrupt="error").caption == "none" and saved("folder").caption == ""
    assert build.modern_config({"data": {"name": "celeba", "corrupt": "error"}})["data"].corrupt == "error"


def images_with_texts(root: Path, texts: dict[int, str]) -> Path:
    for i in range(COUNT):
        save(root / f"{i:02}.png", grey(i))
        if i in texts:
            (root / f"{i:02}.txt").write_text(texts[i])
    return root


def test_a_folder_and_an_archive_have_captions_beside_images(tmp_path: Path) -> None:
    root = images_with_texts(tmp_path / "a", {i: f" grey of\n{i}\n" for i in range(COUNT)})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for file in sorted(root.iterdir()):
            packed.write(file, f"top/{file.name}")
    for read, path in ((folder, root), (archive, tmp_path / "a.zip")):
        for split in ("train", "test"):
            data = read(path, split)
            assert captions(data) == [f"grey of {shade}" for shade in data.x[:, 0, 0, 0]]
            assert data.notes == (f"captions of {COUNT} images",)
        again = read(path)  # from the cache
        assert again.fingerprint == read(path, cache="off").fingerprint
        assert not read(path, caption="none").cond
        refused("expected caption to be none, or empty", read, path, caption="text")
    (root / "01.txt").write_text("changed")
    assert captions(folder(root))[0] == "changed"


def test_lists_name_images_below_their_folder(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        images_with_texts(tmp_path / kind, {})
        rows = [{"file_name": f"{i:02}.png", "text": f"{kind} {i}"} for i in range(COUNT)]
        (tmp_path / kind / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = folder(tmp_path)
    names = [f"{data.class_names[label]} {shade}" for label, shade in zip(data.label, data.x[:, 0, 0, 0], strict=True)]
    assert captions(data) == names
    (tmp_path / "cat" / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "a"}\nfile_name\n')
    refused("got 'file_name' in line 2: correct it, or leave captions out (caption=none)", folder, tmp_path)


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    root = images_with_texts(tmp_path / "a", dict.fromkeys(range(1, COUNT), "words"))
    data = folder(root, "test")
    assert captions(data) == ["", "words"]
    assert data.notes == ("captions of 19 images", "1 image without a caption, read as empty: 00.png")
    few = folder(images_with_texts(tmp_path / "b", {3: "words"}))
    assert not few.cond and "captions not used: 1 of 20 images have one, as 03.png" in few.notes
    boxes = folder(images_with_texts(tmp_path / "c", dict.fromkeys(range(COUNT), "0 .5 .5 .1 .1\n1 .2 .2 .1 .1")))
    assert not boxes.cond and boxes.notes == ("captions not used: those of 20 images are numbers, as of 00.png",)
    (root / "05.txt").write_bytes(b"\xff\xfe\x00")
    refused("05.txt: expected a caption in UTF-8", folder, root)


def test_shards_have_captions(tmp_path: Path) -> None:
    samples = {f"{i:02}.{end}": content for i in range(COUNT)
               for end, content in (("png", png_bytes(grey(i))), ("txt", f"grey {i}".encode()))}  # fmt: skip
    write_shard(tmp_path / "a.tar", samples)
    data = shards(tmp_path / "a.tar")
    assert captions(data) == [f"grey {shade}" for shade in data.x[:, 0, 0, 0]]
    assert not shards(tmp_path / "a.tar", caption="none").cond
