"""Features by a spec: of runs of every kind, of a user's package, and by default."""

from pathlib import Path
from typing import Any

import latent_run
import ml_collections
import pytest
import torch
from class_gaussians import class_run
from image_files import refused
from torch import Tensor
from torch.testing import assert_close
from training_runs import configuration, new_run, new_state

from scorefield.commands.features import open_features
from scorefield.commands.run import stored_tensor
from scorefield.commands.train_classifier import load_classifier, train_classifier
from scorefield.commands.trained import Trained, open_trained
from scorefield.configs import build, digits
from scorefield.evaluation.features import Own, Pixels, PrincipalComponents, Random, StoredAs
from scorefield.training import save

CPU = torch.device("cpu")
DIGITS = StoredAs((1, 8, 8), 17)
PACKAGE = """
import torch
from torch import nn
from scorefield.evaluation.features import Features

class Net(nn.Module):
    def __init__(self, channels, width=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)

    def forward(self, x):
        return self.conv(x)

class Means(Features):
    recipe, fingerprint = "means", "0"

    def __init__(self, stored_as, power=1):
        self.stored_as, self.power = stored_as, power

    def __call__(self, stored):
        return {"features": self.stored_as.unit(stored).flatten(1).mean(1, keepdim=True) ** self.power}

def rows(x, scale=1.0):
    return scale * x.mean(2).flatten(1)

def words():
    return "words"

fixed = Net(1)
"""


def trained_run(workdir: Path, config: ml_collections.ConfigDict | None = None) -> Trained:
    """A run of digits with a checkpoint of random weights."""
    run = new_run(workdir, config)
    run.save()
    save(workdir / "checkpoints", new_state(run))
    return open_trained(workdir, "cpu")


def with_labels(dropout: float) -> ml_collections.ConfigDict:
    config = configuration()
    config.training.update(labels=True, label_dropout=dropout)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained_run(tmp_path_factory.mktemp("features") / "run")


@pytest.fixture(scope="module")
def images(trained: Trained) -> Tensor:
    return stored_tensor(trained.run.dataset("test"))[:5]


@pytest.mark.parametrize(("dropout", "label"), [(0.1, None), (0.0, 0)])
def test_own_features_are_those_of_the_denoiser(
    dropout: float, label: int | None, images: Tensor, tmp_path: Path
) -> None:
    """The layer of the run's own denoiser, on alpha x0, without a class where it can do without."""
    trained = trained_run(tmp_path, with_labels(dropout))
    features = open_features("own:log_snr=1.0,layer=net.blocks.0", DIGITS, CPU, trained)
    alpha = torch.tensor(1.0).sigmoid().sqrt()  # of a path that preserves the variance
    hidden: list[Tensor] = []
    cond = {} if label is None else {"label": torch.full((5,), label)}
    with trained.denoiser.net.blocks[0].register_forward_hook(lambda _, __, h: hidden.append(h)):
        trained.denoiser(alpha * trained.run.centred(images), alpha, (1 - alpha**2).sqrt(), **cond)
    assert_close(features(images)["features"], hidden[0], atol=1e-5, rtol=1e-5)
    assert ("given class 0" in features.recipe) == (label is not None)
    assert_close(features.of(images, batch=2)["features"], hidden[0], atol=1e-5, rtol=1e-5)


def test_own_features_of_a_compiled_network(trained: Trained, images: Tensor, capsys: Any) -> None:
    """Compiled code does not call hooks, so the features have a copy."""
    expected = open_features(None, DIGITS, CPU, trained)
    assert isinstance(expected, Own) and "features: own network (ema weights of 0" in capsys.readouterr().err
    compiled = open_trained(trained.run.workdir, "cpu", compiled=True)
    found = open_features("own", DIGITS, CPU, compiled)
    assert torch.equal(found(images)["features"], expected(images)["features"])
    assert found.fingerprint == expected.fingerprint
    raw = open_trained(trained.run.workdir, "cpu", ema=False)
    assert open_features("own", DIGITS, CPU, raw).fingerprint != expected.fingerprint


def test_own_features_of_a_latent_run(images: Tensor, tmp_path: Path) -> None:
    """Stored images are encoded first: the features are those of the codes."""
    home = latent_run.write_random_autoencoder(tmp_path / "autoencoder")
    trained = trained_run(tmp_path / "run", latent_run.configuration(home))
    features = open_features("own", DIGITS, CPU, trained)
    assert features(images)["features"].shape == (5, 16)
    assert_close(features(images[1:2])["features"], features(images)["features"][1:2], atol=1e-5, rtol=1e-5)
    other = trained_run(
        tmp_path / "other", latent_run.configuration(latent_run.write_random_autoencoder(tmp_path / "b", 1))
    )
    assert open_features("own", DIGITS, CPU, other).fingerprint != features.fingerprint


def test_runs_that_have_no_own_features(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    class_run(tmp_path / "points", tmp_path / "points.npz")
    points = open_trained(tmp_path / "points", "cpu")
    plane = StoredAs((2,), None)
    refused("hidden layers", open_features, "own", plane, CPU, points)
    assert isinstance(open_features(None, plane, CPU, points), Pixels)
    assert "features: pixels, 2 values; " in (said := capsys.readouterr().err) and "not own: expected" in said
    refused("expected a run for features own", open_features, "own", DIGITS, CPU)
    refused("expected a run for features classifier", open_features, "classifier", DIGITS, CPU)
    refused("found no classifier.safetensors", open_features, "classifier", DIGITS, CPU, trained)
    refused("got (1, 9, 8) of 17", open_features, "own", StoredAs((1, 9, 8), 17), CPU, trained)
    config = digits.get_config("mulan").copy_and_resolve_references()
    config.net = build.spec(build.NETWORKS, "mlp", width=16, blocks=1)
    config.sde.encoder_width = 8
    run = new_run(tmp_path / "mulan", config)
    mulan = Trained(run, run.new_denoiser(), tmp_path, ema=True)
    refused("one noise level for all dimensions", open_features, "own", DIGITS, CPU, mulan)
    assert isinstance(open_features(None, DIGITS, CPU, mulan), Random)


def test_a_classifier_gives_features_and_probabilities(images: Tensor, tmp_path: Path) -> None:
    trained = trained_run(tmp_path)
    train_classifier(tmp_path, num=32, batch=32, device="cpu")
    found = open_features("classifier", DIGITS, CPU, trained)(images)
    classifier, _ = load_classifier(trained)
    assert found["features"].shape == (5, classifier.head.in_features)
    alpha, sigma = trained.run.sde.scales(trained.run.sde.t_min)
    logits = classifier(trained.run.centred(images) * float(alpha), alpha, sigma)
    assert_close(found["probabilities"], logits.softmax(1))
    assert_close(found["features"] @ classifier.head.weight.T + classifier.head.bias, logits)


def test_a_users_package(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    net = open_features("theirs.Net:width=4", DIGITS, CPU)
    assert net(images)["features"].shape == (5, 4) and net.recipe.startswith("theirs.Net:width=4 (")
    assert (
        open_features("theirs.Net:width=4", DIGITS, CPU).fingerprint == net.fingerprint
    )  # though its weights are random
    means = open_features("theirs.Means:power=2", DIGITS, CPU)
    assert_close(means(images)["features"][:, 0], (images / 16).mean((1, 2, 3)) ** 2)
    rows = open_features("theirs.rows:scale=2.0", DIGITS, CPU)
    assert_close(rows(images)["features"], 2 * (images / 16).mean(2).flatten(1))
    assert_close(open_features("theirs.rows", DIGITS, CPU)(images)["features"], rows(images)["features"] / 2)
    assert open_features("theirs.fixed", DIGITS, CPU)(images)["features"].shape == (5, 3)
    refused("got 'words'", open_features, "theirs.words", DIGITS, CPU)
    refused("cannot import theirs.None", open_features, "theirs.None", DIGITS, CPU)
    refused("name of your own package", open_features, "torch.nn.Flatten", DIGITS, CPU)
    refused("expected one of", open_features, "theirs", DIGITS, CPU)


@pytest.mark.parametrize(
    ("shape", "levels", "kind"),
    [
        ((1, 8, 8), 17, Random), ((5, 28, 20), 256, Random), ((2, 40), None, Random), ((1, 2, 3, 4), None, Random),
        ((8,), None, Pixels), ((2000,), None, PrincipalComponents), ((1, 2, 2, 2, 2), 256, Pixels),
    ],
)  # fmt: skip
def test_defaults_without_a_run(shape: tuple[int, ...], levels: int | None, kind: type, capsys: Any) -> None:
    features = open_features(None, StoredAs(shape, levels), CPU)
    assert type(features) is kind
    said = capsys.readouterr().err
    assert said.startswith("features: ") and said.count("\n") == 1


def test_photographs_take_inception_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SCOREFIELD_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    photographs = StoredAs((3, 32, 32), 256)
    assert isinstance(open_features(None, photographs, CPU), Random)
    assert "not inception: expected the weights" in capsys.readouterr().err
