"""Runs with a conditioner, by the commands: captions, boxes, maps, classes, small images and masked ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pytest
import torch
from latent_run import write_random_autoencoder
from safetensors.torch import load_file
from scenes import scenes

from scorefield.commands.conditioning import sampled_conditioning
from scorefield.commands.conditions import conditions_of, rectangles
from scorefield.commands.encode import decode, encode
from scorefield.commands.export_run import export_run
from scorefield.commands.import_checkpoint import import_checkpoint
from scorefield.commands.interpolate import interpolate
from scorefield.commands.run import open_run
from scorefield.commands.sample import sample
from scorefield.commands.train.command import train
from scorefield.commands.trained import open_trained
from scorefield.configs import build, latent
from scorefield.models.guidance import ClassifierFree

CONDITIONERS = {
    "text": "text:width=8,layers=1,heads=1,head_width=8,length=8",
    "boxes": "boxes:width=8,layers=1,heads=1,head_width=8,boxes=2,sections=4",
    "map": "map:halvings=0",
    "class_tokens": "class_tokens:width=8",
    "low": "low:image_channels=1,factor=2",
    "masked": "masked",
}


def configuration(kind: str, images: int = 96, **training: Any) -> ml_collections.ConfigDict:
    config = latent.get_config().copy_and_resolve_references()
    config.data = build.spec(build.DATASETS, "scenes.scenes")
    with config.ignore_type():
        config.conditioner = build.spec(build.CONDITIONERS, CONDITIONERS[kind])
    tokens = kind in ("text", "boxes", "class_tokens")
    net = (
        "adm:width=16,multipliers=(1,),blocks=1,attention=(0,),head_width=8,transformer_depth=1,dropout=0.0"
        if tokens
        else "unet:width=8,multipliers=(1,),blocks=1,attention=()"
    )
    config.net = build.spec(build.NETWORKS, net)
    config.sampling.steps = 2
    config.training.update(
        images=images, batch=32, log_every=2, sample_every=0, warmup=0, ema=0.5, learning_rate=1e-2, decay=False,
        labels=kind == "class_tokens", **training,
    )  # fmt: skip
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("conditioned")
    for kind in CONDITIONERS:
        train(folder / kind, configuration(kind), device="cpu")
    return {kind: folder / kind for kind in CONDITIONERS}


@pytest.mark.parametrize("kind", [*CONDITIONERS])
def test_a_conditioned_run_samples_with_guidance_and_encodes(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    run = runs[kind]
    out = [tmp_path / f"{name}.npz" for name in ("plain", "guided", "small_batches")]
    sample(run, num=4, device="cpu", output=str(out[0]))
    sample(run, num=4, guidance=30.0, device="cpu", output=str(out[1]))
    sample(run, num=4, batch=3, device="cpu", output=str(out[2]))
    plain, guided, small = (np.load(file)["x"].astype(int) for file in out)
    assert np.abs(plain - small).max() <= 1  # a rounding at the edge of a cell
    assert np.abs(plain - guided).max() > 1
    encode(run, num=3, solver="belm", steps=4, device="cpu", output=str(latents := tmp_path / "latents.npz"))
    told = decode(run, input=str(latents), device="cpu", output=str(tmp_path / "back.npz"))
    assert told["round_trip_rms"] < 1e-3  # belm comes back exactly, with the same condition
    interpolate(run, num=2, steps=4, device="cpu", output=str(tmp_path / "between.npz"))


def test_a_caption_is_given_to_every_sample_and_the_tokeniser_is_the_runs(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    run = open_run(runs["text"], "cpu")
    one = sampled_conditioning(run, 2, caption="square 2 left").cond["tokens"]
    rows = [i for i, text in enumerate(scenes("test").cond["caption"]) if text == "square 2 left"]
    every = sampled_conditioning(run, 60).cond["tokens"]
    assert torch.equal(one, every[rows[0]].expand(2, -1))
    assert len({tuple(row) for row in every.tolist()}) == 6
    assert run.config.conditioner.vocabulary == run.tokenizer.size
    for caption in ("square 0 left", ""):
        sample(runs["text"], num=2, caption=caption, device="cpu", output=str(tmp_path / f"{len(caption)}.npz"))
    moved = shutil.copytree(runs["text"], tmp_path / "moved")
    (moved / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokeniser"):
        sample(moved, num=2, caption="square 0 left", device="cpu")


def test_an_interrupted_run_with_captions_gives_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "whole", configuration("text", 128), device="cpu")
    train(tmp_path / "parts", configuration("text", 64), device="cpu")
    train(tmp_path / "parts", configuration("text", 128), device="cpu")
    one, other = (
        load_file(tmp_path / name / "checkpoints" / "0000000128" / "model.safetensors") for name in ("whole", "parts")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(key.startswith("denoiser.net.conditioner.") for key in one)


def test_no_conditioning_is_the_unconditional_denoiser_of_guidance(runs: dict[str, Path]) -> None:
    for kind in ("text", "boxes", "masked"):
        trained = open_trained(runs[kind], "cpu")
        cond = sampled_conditioning(trained.run, 3).cond
        network = trained.denoiser.net
        x, alpha, sigma = torch.randn(3, 1, 8, 8), torch.tensor(0.6), torch.tensor(0.8)
        without = trained.denoiser(x, alpha, sigma)
        unguided = ClassifierFree(trained.denoiser, 0.0, network.conditioning)(x, alpha, sigma, **cond)
        dropped = trained.denoiser(x, alpha, sigma, **cond, known=torch.zeros(3, dtype=torch.bool))
        assert torch.equal(unguided, without)
        assert torch.allclose(dropped, without, atol=1e-6)
        assert not torch.allclose(trained.denoiser(x, alpha, sigma, **cond), without, atol=1e-4)


def test_a_small_image_is_the_mean_of_its_pixels_and_a_masked_one_hides_its_rectangle(runs: dict[str, Path]) -> None:
    run = open_run(runs["low"], "cpu")
    low = sampled_conditioning(run, 2).cond["low"]
    x = torch.as_tensor(scenes("test").x[:2].astype(np.float32))
    mean = x.reshape(2, 1, 4, 2, 4, 2).mean((3, 5))
    assert torch.allclose(low, (mean + 0.5) / 128 - 1, atol=1e-6)
    run = open_run(runs["masked"], "cpu")
    cond = sampled_conditioning(run, 60).cond
    hidden = cond["mask"].mean((1, 2, 3))
    assert float(hidden.min()) >= 0.0
    # Sides are uniform in 0.2 .. 0.7: a mean area of 0.2025. Its standard error over 60 images is 0.013.
    assert abs(float(hidden.mean()) - 0.2025) < 0.05
    assert run.low == -1.0 and bool((cond["masked"][cond["mask"] == 1] == run.low).all())  # black
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(rectangles(x, generator), rectangles(x, torch.Generator().manual_seed(5)))


def test_conditions_that_a_run_does_not_have_are_refused_in_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected no --caption"):
        sample(runs["boxes"], num=1, caption="left", device="cpu")
    config = configuration("text")
    config.data = build.spec(build.DATASETS, "digits")
    with pytest.raises(ValueError, match="expected a caption for each item of digits"):
        train(tmp_path / "no_captions", config, device="cpu")
    config = configuration("boxes")
    config.data = build.spec(build.DATASETS, "digits")
    with pytest.raises(ValueError, match="box classes"):
        train(tmp_path / "no_boxes", config, device="cpu")
    config = configuration("text")
    config.net = build.spec(build.NETWORKS, "unet:width=8")
    with pytest.raises(ValueError, match="takes context tokens"):
        train(tmp_path / "no_context", config, device="cpu")
    config = configuration("text")
    config.transform.flip = True
    with pytest.raises(ValueError, match="stay true of a mirrored image"):
        train(tmp_path / "mirrored", config, device="cpu")
    always = configuration("map", label_dropout=0.0)
    train(tmp_path / "always", always, device="cpu")
    with pytest.raises(ValueError, match="expected no --guidance"):
        sample(tmp_path / "always", num=1, guidance=2.0, device="cpu")


def test_codes_of_the_masked_image_are_what_the_network_sees(tmp_path: Path) -> None:
    ae = write_random_autoencoder(tmp_path / "ae")
    for kind in ("masked", "text"):
        config = configuration(kind, 32)
        config.autoencoder = str(ae)
        train(tmp_path / kind, config, device="cpu")
        sample(tmp_path / kind, num=2, device="cpu")
        assert json.loads((tmp_path / kind / "config.json").read_text())["config"]["autoencoder"] == str(ae)
    run = open_run(tmp_path / "masked", "cpu")
    conditions = conditions_of(run)
    assert conditions is not None
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    made = conditions.of_model_images(images, torch.Generator().manual_seed(0))
    assert run.autoencoder is not None
    expected = run.autoencoder.scaled.encode(torch.where(made["mask"] == 1, -1.0, images))
    assert torch.equal(made["masked"], expected)
    assert made["masked"].shape == (2, 3, 4, 4)


@pytest.mark.parametrize("kind", ["text", "boxes", "masked"])
def test_an_exported_run_comes_back_with_its_conditioner_autoencoder_and_tokeniser(kind: str, tmp_path: Path) -> None:
    ae = write_random_autoencoder(tmp_path / "ae")
    config = configuration(kind, 32)
    config.autoencoder = str(ae)
    train(tmp_path / "run", config, device="cpu")
    export_run(tmp_path / "run", device="cpu")
    folder = shutil.move(tmp_path / "run" / "export", tmp_path / "export")
    import_checkpoint(tmp_path / "back", file=str(folder), source="scorefield", data="scenes.scenes")
    for name in ("run", "back"):
        sample(tmp_path / name, num=2, seed=3, steps=3, solver="ddim", grid="log_snr", denoise=True, device="cpu")
    one, other = (np.load(tmp_path / name / "samples.npz")["x"] for name in ("run", "back"))
    assert np.array_equal(one, other)
