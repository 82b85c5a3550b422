"""Features of a user's module or function."""

import torch
from image_files import refused
from torch import Tensor, nn
from torch.testing import assert_close

from scorefield.evaluation.features import OfModule, StoredAs

GREY = StoredAs((1, 4, 4), 17)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def test_a_module_is_evaluated_on_unit_values_and_averaged() -> None:
    x = torch.randint(17, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    net = Net()
    features = OfModule(net, "mine", GREY)
    assert_close(features(x)["features"], net.layers[:2](x / 16).mean((2, 3)))
    assert_close(features.of(x, batch=1)["features"], features(x)["features"])
    with torch.no_grad():
        net.layers[1].running_mean += 1
    assert OfModule(net, "mine", GREY).fingerprint != features.fingerprint
    assert features.recipe == f"mine ({features.fingerprint[:8]})"


def test_a_function_is_called_as_it_is() -> None:
    x = torch.tensor([[1.0, 2.0]])
    features = OfModule(lambda x: x**2, "squares", StoredAs((2,), None))
    assert torch.equal(features(x)["features"], x**2)
    other = OfModule(lambda x: x**3, "squares", StoredAs((2,), None))
    assert other.fingerprint != features.fingerprint


def test_an_odd_answer_has_one_line() -> None:
    x = torch.zeros(3, 1, 4, 4)
    refused("got RuntimeError", OfModule(nn.Linear(5, 2), "mine", GREY), x)
    refused("to answer with a tensor (3, d), got (1, 16)", OfModule(lambda x: x[:1].flatten(1), "mine", GREY), x)
    refused("got (3,)", OfModule(lambda x: x.sum((1, 2, 3)), "mine", GREY), x)
    refused("got dict", OfModule(lambda x: {"h": x}, "mine", GREY), x)  # type: ignore[arg-type,return-value]


def test_the_same_weights_in_other_code_are_other_features() -> None:
    class Doubled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net, other = Net(), Doubled()
    other.load_state_dict(net.state_dict())
    assert OfModule(other, "mine", GREY).fingerprint != OfModule(net, "mine", GREY).fingerprint
