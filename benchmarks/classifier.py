"""A small classifier of digits or of Fashion-MNIST, whose features and classes measure samples.

python -m scorefield.benchmarks.classifier --folder=FOLDER [--data=fashion_mnist] [--samples=FILE.npz]

It is trained once in a folder, in less than a minute on a core, and says its accuracy on the test split. Of `samples`
it prints the Frechet distance to as many test images, in its 64 features, and how sure it is of their classes.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from scorefield.evaluation.metrics.frechet import frechet_distance
from scorefield.training.data import Batches, Dataset, ToModelRange, fashion_mnist, mnist, whole_array
from scorefield.training.data.batches import tensor

FEATURES = 64
EPOCHS, BATCH, RATE = 4, 128, 4e-3
DATA = {"mnist": mnist, "fashion_mnist": fashion_mnist}


class Classifier(nn.Module):
    """Classes of images (B, C, H, W) in -1 .. 1. Of larger ones, as padded ones, it sees the centre.

    Args:
        shape: of the images that it is trained on, (C, H, W).
        classes: their number.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.accuracy = 0.0  # on the test split
        quarter = -(-shape[1] // 4) * -(-shape[2] // 4)
        self.convolutions = nn.Sequential(
            nn.Conv2d(shape[0], 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.hidden = nn.Linear(48 * quarter, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 64), what the last layer sees."""
        top, left = ((size - own) // 2 for size, own in zip(images.shape[2:], self.shape[1:], strict=True))
        seen = images[..., top : top + self.shape[1], left : left + self.shape[2]]
        return functional.relu(self.hidden(self.convolutions(seen).flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, classes), each row of sum 1."""
        return self.forward(images).softmax(1)


def images_of(dataset: Dataset, count: int | None = None) -> Tensor:
    """The first images of a set in -1 .. 1, each level at the centre of its cell."""
    return ToModelRange(dataset.levels, dequantise=False)(tensor(dataset.x[:count]), Generator())


def classifier(train: Dataset, test: Dataset, folder: Path) -> Classifier:
    """The classifier of a data set: read from the folder, or trained and stored there."""
    path = folder / f"classifier-{train.name}-{train.fingerprint[:12]}.pt"
    model = Classifier(train.shape, train.num_classes or 0)
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["weights"])
        model.accuracy = saved["accuracy"]
        return model.eval()
    _train(model, train)
    model.accuracy = accuracy(model, test)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": model.state_dict(), "accuracy": model.accuracy}, path)
    return model


def _train(model: Classifier, train: Dataset) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    steps = EPOCHS * len(train) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    batches = Batches(train, BATCH, transform=ToModelRange(train.levels, dequantise=False), labels=True)
    for _, batch in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch["x0"]), batch["label"])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)


@torch.no_grad()
def features_of(model: Classifier, images: Tensor, batch: int = 500) -> Tensor:
    """The features (N, 64) of many images, in batches."""
    return torch.cat([model.features(part) for part in torch.split(images, batch)])


@torch.no_grad()
def probabilities_of(model: Classifier, images: Tensor, batch: int = 500) -> Tensor:
    """The probabilities (N, classes) of many images, in batches."""
    return torch.cat([model.probabilities(part) for part in torch.split(images, batch)])


def accuracy(model: Classifier, data: Dataset) -> float:
    """The share of a labelled set whose class it finds."""
    found = probabilities_of(model, images_of(data)).argmax(1)
    return float((found == torch.as_tensor(data.label)).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--data", choices=list(DATA), default="fashion_mnist")
    parser.add_argument("--samples", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    test = DATA[args.data](split="test")
    model = classifier(DATA[args.data](), test, args.folder)
    report = {"accuracy": model.accuracy, "seconds": round(time.perf_counter() - began, 1)}
    if args.samples:
        images = images_of(whole_array(args.samples, 256))
        real = features_of(model, images_of(test, len(images)))
        report["samples"] = len(images)
        report["frechet_distance"] = round(frechet_distance(features_of(model, images), real), 2)
        report["sureness"] = round(float(probabilities_of(model, images).amax(1).mean()), 3)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
