"""A network with its conditioner, by its configuration: what flows from one to the other, and what is refused."""

import json
from typing import Any

import ml_collections
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from scorefield.commands.configuration import override
from scorefield.configs import build
from scorefield.configs.defaults import defaults
from scorefield.configs.latent import get_config
from scorefield.models import ADM, ClassifierFree, Denoiser
from scorefield.models.conditioned import ConditionedNetwork
from scorefield.models.conditioners import READY
from scorefield.models.layers.transformer import SpatialTransformer

SHAPE = (2, 4, 4)
ADM_SMALL: dict[str, Any] = {
    "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_width": 4, "dropout": 0.0,
}  # fmt: skip
TEXT = "text:vocabulary=9,width=6,layers=1,heads=2,head_width=4,length=4"
X = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[2, 5, 3, 0], [2, 8, 3, 0], [2, 1, 1, 3]])
AT = (torch.tensor([0.8, 0.6, 0.1]), torch.tensor([0.6, 0.8, 0.9]))


def config(
    conditioner: str | None, net: str = "adm", dropout: float = 0.1, **keywords: Any
) -> ml_collections.ConfigDict:
    made = defaults()
    made.net = build.spec(build.NETWORKS, net, **(ADM_SMALL if net == "adm" else {}), **keywords)
    made.training.label_dropout = dropout
    return made if conditioner is None else override(made, [f"--config.conditioner={conditioner}"])


def denoiser(conditioner: str, num_classes: int | None = None, **options: Any) -> Denoiser:
    """With random weights, in the place of those that start as zero."""
    torch.manual_seed(1)
    made = build.denoiser(config(conditioner, **options), SHAPE, num_classes)
    for weight in made.parameters():
        weight.data = torch.randn_like(weight) / max(weight[0].numel(), 1) ** 0.5
    return made.eval()


def test_width_channels_and_classes_flow_from_the_conditioner_to_the_network() -> None:
    for conditioner, context, concat in (
        ("class_tokens:width=6", 6, 0), (TEXT, 6, 0), ("boxes:classes=3,width=12,boxes=2,sections=4", 12, 0),
        ("map:classes=3,out=2", None, 2), ("low:image_channels=1", None, 1), ("masked", None, 3),
    ):  # fmt: skip
        net = denoiser(conditioner, 5).net
        assert isinstance(net, ConditionedNetwork) and isinstance(net.net, ADM)
        assert (net.net.context, net.net.concat) == (context, concat)
        assert (net.net.embed.labels is None) == (conditioner == "class_tokens:width=6")  # else it takes the class too
        assert not net.required
    assert isinstance(build.denoiser(config(None), SHAPE, None).net, ADM)
    assert isinstance(build.network(config("masked", "unet", width=8), SHAPE, None), ConditionedNetwork)


def test_a_network_that_cannot_take_it_is_refused_in_one_line() -> None:
    for made, message in (
        (config(TEXT, "unet"), "a network that takes context tokens, for the conditioner text, got unet: use adm"),
        (config("low", "mlp"), "a network that takes images beside x, for the conditioner low, got mlp: use unet, adm"),
        (config(TEXT, context=5), "expected net.context=6, as the conditioner text gives it, got 5: leave it out"),
        (config("low", concat=2), "expected net.concat=3, as the conditioner low gives it, got 2: leave it out"),
        (config("class_tokens"), "expected classes for class tokens, got none"),
        (config("text"), "expected the vocabulary of the conditioner, got None: set conditioner.vocabulary"),
        (config("boxes"), "expected the number of box classes of the conditioner, got None: set conditioner.classes"),
        (config("map"), "expected the number of map classes of the conditioner, got None"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            build.denoiser(made, SHAPE, None)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_configuration_names_a_conditioner_or_none_and_old_ones_open() -> None:
    made = override(config(None), ["--config.conditioner.layers=1", "--config.conditioner=text:vocabulary=7"])
    assert (made.conditioner.name, made.conditioner.layers, made.conditioner.vocabulary) == ("text", 1, 7)
    saved = json.loads(made.to_json())
    assert json.loads(build.modern_config(saved)["conditioner"].to_json()) == saved["conditioner"]
    assert override(made, ["--config.conditioner=None"]).conditioner is None
    assert build.modern_config(json.loads(made.to_json()))["conditioner"] is None
    del (old := json.loads(config(None).to_json()))["conditioner"]
    assert isinstance(build.network(ml_collections.ConfigDict(build.modern_config(old)), SHAPE, None), ADM)
    with pytest.raises(ValueError, match="in place of 'layers' there is a value, not a group"):
        override(made, ["--config.conditioner.layers=1"])


def test_a_network_that_was_always_given_its_conditioning_refuses_to_be_called_without() -> None:
    strict = denoiser("masked", dropout=0.0)
    with pytest.raises(ValueError, match="expected masked and mask, because this network was always given"):
        strict(X, *AT)
    strict(X, *AT, masked=X, mask=torch.ones(3, 1, 4, 4))
    with pytest.raises(ValueError, match="some conditions left out, got one that was always given a condition"):
        ClassifierFree(strict, 2.0, ("masked", "mask"))


def test_tokens_of_the_context_have_no_order_and_masked_ones_no_influence() -> None:
    """To rounding in float64: another order sums in another one."""
    model = denoiser(TEXT).double()
    context = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, False, False], [False, True, False, True, True], [True] * 5])
    answer = model(X.double(), *AT, context=context, context_mask=mask)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(
        model(X.double(), *AT, context=context[:, order], context_mask=mask[:, order]), answer, rtol=1e-12, atol=1e-12
    )
    answer.square().sum().backward()
    assert context.grad is not None
    assert torch.equal(context.grad.abs().amax(2) > 0, mask)
    other = torch.where(mask[:, :, None], context, 1e3)
    assert torch.equal(model(X.double(), *AT, context=other, context_mask=mask), answer)


def test_guidance_of_a_conditioned_network() -> None:
    """The line through both, by one call and by two, and to the bit at its ends; raw or prepared."""
    model = denoiser(TEXT)
    net = model.net
    assert isinstance(net, ConditionedNetwork)
    assert net.conditioning == ("tokens", *READY)
    given, without = model(X, *AT, tokens=TOKENS), model(X, *AT)
    assert not torch.equal(given, without)
    assert torch.equal(model(X, *AT, tokens=torch.zeros_like(TOKENS)), without)  # an empty caption
    # Guided samples are made in a batch of both, and some processors round a row by the size of its batch.
    x, *at = (torch.cat([each, each]) for each in (X, *AT))
    weak, strong = model(x, *at, tokens=torch.cat([torch.zeros_like(TOKENS), TOKENS])).chunk(2)
    scale = torch.tensor([0.0, 1.0, 2.5])
    for cond in ({"tokens": TOKENS}, net.conditioner.prepare({"tokens": TOKENS})):
        for number, expected in ((0.0, without), (1.0, given)):
            assert torch.equal(ClassifierFree(model, number, net.conditioning)(X, *AT, **cond), expected)
        two = ClassifierFree(model, 2.5, net.conditioning)
        assert_close(two(X, *AT, **cond), weak + 2.5 * (strong - weak), rtol=1e-6, atol=1e-6)
        each = two(X, *AT, guidance=scale, **cond)
        assert torch.equal(each[0], weak[0]) and torch.equal(each[1], strong[1])
        assert torch.equal(each[2], two(X, *AT, **cond)[2])


def test_the_conditioner_is_trained_with_its_network() -> None:
    model = denoiser(TEXT).train()
    loss: Tensor = model(X, *AT, tokens=TOKENS, known=torch.tensor([True, True, False])).square().sum()
    loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters() if weight.ndim > 1)


def test_canvases_weigh_the_error_in_v_and_places_ask_the_caption() -> None:
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64)
    for variant, classes in (("canvas_text", "vocabulary"), ("canvas_layout", "classes"), ("canvas_map", "classes")):
        made = get_config(variant)
        made.conditioner[classes] = 9
        sde, weight = build.build(build.SDES, made.sde), build.build(build.WEIGHTINGS, made.training.weight)
        # v = (alpha x - x0) / sigma, so an error in v is one in x0 over sigma.
        assert_close(weight(sde, t), sde.scales(t)[1] ** -2)
        with torch.device("meta"):
            net = build.denoiser(made, (4, 8, 8), None).net
        assert isinstance(net, ConditionedNetwork)
        spatial = [layer for layer in net.modules() if isinstance(layer, SpatialTransformer)]
        assert bool(spatial) == (variant != "canvas_map") and all(layer.positions for layer in spatial)
        assert variant != "canvas_text" or made.conditioner.masked
