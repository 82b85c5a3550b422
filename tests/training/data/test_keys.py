"""Arrays by the names that people give them: data is never a label, and a split never another one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import labels, refused

from scorefield.training.data import array, whole_array

X = np.arange(120, dtype=np.uint8).reshape(20, 2, 3)
X_TEST = X[:6] + 1
Y = (np.arange(20) % 4).astype(np.uint8)
Y_TEST = np.array([3, 1, 2, 0, 1, 2], np.uint8)
VAL = (X[:4] + 2, Y[:4])

# Files that people publish: the names of train data, its labels, test data, its labels, and others.
PUBLISHED: dict[str, tuple[dict[str, Any], bool]] = {
    "keras": ({"x_test": X_TEST, "x_train": X, "y_train": Y, "y_test": Y_TEST}, True),
    "labels first": ({"train_labels": Y, "train_images": X, "test_labels": Y_TEST, "test_images": X_TEST}, True),
    "(N, 1)": ({"y_train": Y[:, None], "x_train": X, "y_test": Y_TEST[:, None], "x_test": X_TEST}, True),
    "capitals": ({"Y_train": Y, "X_train": X, "X_test": X_TEST, "Y_test": Y_TEST}, True),
    "camel": ({"yTrain": Y, "xTrain": X, "xTest": X_TEST, "yTest": Y_TEST}, True),
    "short": ({"tr_y": Y, "tr_x": X, "te_x": X_TEST, "te_y": Y_TEST}, True),
    "medmnist": (
        {
            "train_images": X, "val_images": VAL[0], "test_images": X_TEST, "train_labels": Y[:, None],
            "val_labels": VAL[1][:, None], "test_labels": Y_TEST[:, None],
        },
        True,
    ),
    "validation": ({"images": X, "labels": Y, "validation_images": X_TEST, "validation_labels": Y_TEST}, True),
    "splits alone": ({"train_labels": Y, "train": X, "test": X_TEST, "test_labels": Y_TEST}, True),
    "features and ids": ({"ids": np.arange(20)[:, None], "features": X, "labels": Y}, False),
    "image and label": ({"label": Y, "image": X}, False),
    "targets": ({"targets": Y, "samples": X, "class_names": np.array(list("abcd"))}, False),
    "data and mean": ({"mean": X.mean(0), "labels": Y, "data": X}, False),
    "arr": ({"arr_0": X, "arr_1": Y}, False),
    "fine labels": ({"fine_labels": Y, "data": X}, False),
}  # fmt: skip


@pytest.mark.parametrize("form", PUBLISHED)
def test_published_files_are_what_their_names_say(tmp_path: Path, form: str) -> None:
    arrays, separate = PUBLISHED[form]
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    train, test = array(path), array(path, "test")
    held = [0, 10]
    assert (train.x == (X if separate else np.delete(X, held, 0))).all() and train.levels == 256
    assert (test.x == (X_TEST if separate else X[held])).all()
    if form == "arr":  # an array without a name of its own is no label
        assert train.label is None and "arr_1 not used" in train.notes[0]
        return
    assert labels(train).tolist() == (Y if separate else np.delete(Y, held)).tolist()
    assert labels(test).tolist() == (Y_TEST if separate else Y[held]).tolist()
    assert train.num_classes == test.num_classes == 4 and len(train.notes) == 1
    if form == "medmnist":
        assert train.notes[0] == (
            "training on train_images with train_labels, testing on test_images with test_labels, "
            "val_images, val_labels not used"
        )


def test_several_arrays_are_named_and_a_setting_chooses(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, first=X[:9], second=X)
    refused("expected one array of data, got first (9, 2, 3), second (20, 2, 3): choose one (key=NAME)", array, path)
    refused("expected one array of data, got first (9, 2, 3)", whole_array, path, 256)
    assert (array(path, "test", key="second").x == X[[0, 10]]).all()
    refused("expected an array 'third', got first (9, 2, 3), second (20, 2, 3)", array, path, key="third")
    np.savez(path, data=X.reshape(20, 6), images=X, target=Y, labels=Y // 2)
    refused("expected one array of data, got data (20, 6), images (20, 2, 3)", array, path)
    refused("got target (20,), labels (20,): choose one (label_key=NAME), or none", array, path, key="images")
    chosen = array(path, key="images", label_key="labels")
    assert chosen.shape == (2, 3) and labels(chosen).tolist() == np.delete(Y // 2, [0, 10]).tolist()
    assert array(path, key="images", label_key="none").label is None
    np.savez(path, x=X, x_train=X, x_test=X_TEST)
    refused("got x (20, 2, 3), x_train (20, 2, 3), x_test (6, 2, 3): choose one", array, path)
    assert (array(path, "test", key="x_train").x == X_TEST).all()
    np.savez(path, x_test=X, y_test=Y)
    refused("expected data to train on, got only x_test", array, path)
    alone = array(path, "test", key="x_test")
    assert (alone.x == X[[0, 10]]).all() and labels(alone).tolist() == Y[[0, 10]].tolist()
    np.savez(path, y=Y, labels_train=Y)
    refused("expected an array named x, got y (20,), labels_train (20,)", array, path)


def test_labels_of_words_are_numbered_over_both_splits(tmp_path: Path) -> None:
    words = np.array(["cat", "dog", "ant"])
    np.savez(tmp_path / "a.npz", x=X, y=words[Y % 2], x_test=X_TEST, y_test=words[[2, 1, 0, 0, 1, 2]])
    train, test = array(tmp_path / "a.npz"), array(tmp_path / "a.npz", "test")
    assert train.class_names == test.class_names == ("ant", "cat", "dog")
    assert labels(train).tolist() == (1 + Y % 2).tolist() and labels(test).tolist() == [0, 2, 1, 1, 2, 0]


def test_only_the_arrays_that_are_read_must_be_readable(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, names=np.array([{}], object))
    assert (array(tmp_path / "a.npz").x == np.delete(X, [0, 10], 0)).all()


def test_an_input_is_the_test_split_of_its_file(tmp_path: Path) -> None:
    for name, arrays in {
        "a": {"y_train": Y, "x_train": X, "x_test": X_TEST},
        "b": {"label": Y[:6], "z": X_TEST},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
        assert (whole_array(tmp_path / f"{name}.npz", 256).x == X_TEST).all()


def test_files_of_one_array_beside_each_other(tmp_path: Path) -> None:
    for name, x in {"y_train": Y, "x_train": X, "x_val": VAL[0], "x_test": X_TEST, "y_test": Y_TEST, "mean": X}.items():
        np.save(tmp_path / f"{name}.npy", x)
    train, test = array(tmp_path / "x_train.npy"), array(tmp_path / "x_train.npy", "test")
    assert (train.x == X).all() and (test.x == X_TEST).all()
    assert labels(train).tolist() == Y.tolist() and labels(test).tolist() == Y_TEST.tolist()
    assert "x_val not used" in train.notes[0]
    assert (array(tmp_path / "x_val.npy", "test").x == VAL[0][[0]]).all() and array(tmp_path / "mean.npy").label is None


@pytest.mark.parametrize(("ending", "reader"), [("mat", "scipy.io.loadmat"), ("h5", "h5py.File"), ("pt", "torch.load")])
def test_files_of_other_formats_say_how_to_convert_them(tmp_path: Path, ending: str, reader: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"another format")
    refused(f"read it with {reader} and save it with numpy.save", array, path)
