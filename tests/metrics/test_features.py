"""Extractors: what they see, that they stay what they are, and their files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import special_files
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from diffflow_ext.likelihood import quantise
from diffflow_ext.metrics import frechet_distance, precision_recall
from diffflow_ext.metrics.features import (
    DigitClassifier,
    DigitExtractor,
    load_extractor,
    save_extractor,
    train_extractor,
)

NOISE = torch.randint(0, 256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(40) % 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Weights depend on the number of threads, and small batches are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits, shuffled, of 8x8 pixels that are doubled to 16x16."""
    found = load_digits()
    levels = torch.from_numpy(found.images * 255.0 / 16.0).round().byte()
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(1))
    images = levels[:, None].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return images[order], torch.from_numpy(found.target)[order]


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> DigitExtractor:
    images, labels = digits
    return train_extractor(images[:1400], labels[:1400], epochs=12, batch_size=64)


@pytest.fixture(scope="module")
def quick() -> DigitExtractor:
    """Trained on noise for two steps: for all that doesn't ask what it sees."""
    return train_extractor(NOISE, LABELS, epochs=1, batch_size=20, name="quick")


# --- the classifier and its training -------------------------------------------------------------


@pytest.mark.parametrize("size", [14, 16, 28, 32])
def test_classifier_of_each_size(size: int) -> None:
    classifier = DigitClassifier(size, 7)
    assert classifier(torch.zeros(5, 1, size, size)).shape == (5, 7)
    count = sum(p.numel() for p in classifier.parameters())
    convolutions = 16 * 10 + 32 * (16 * 9 + 1)
    assert count == convolutions + 64 * (32 * (size // 4) ** 2 + 1) + 7 * 65


@pytest.mark.parametrize(("size", "classes"), [(13, 10), (33, 10), (28, 1), (28, 1001)])
def test_classifier_refuses(size: int, classes: int) -> None:
    with pytest.raises(ValueError, match=rf"from 14 to 32 .*size={size}, num_classes={classes}"):
        DigitClassifier(size, classes)


def test_classifier_learns(trained: DigitExtractor, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    assert trained.accuracy(images[1400:], labels[1400:]) > 0.95
    assert trained.accuracy(images[1400:], (labels[1400:] + 1) % 10) < 0.05
    assert trained.classify(images[1400:1500]).shape == (100,)
    assert trained.name == "classifier-16x16"


def test_training_is_deterministic_and_leaves_the_generator_alone(quick: DigitExtractor) -> None:
    before = torch.get_rng_state()
    again = train_extractor(NOISE.numpy(), LABELS.numpy(), epochs=1, batch_size=20, name="quick")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.hash == quick.hash
    assert torch.equal(again.features(NOISE), quick.features(NOISE))
    for other in ({"seed": 1}, {"epochs": 2}, {"batch_size": 10}):
        changed = {"epochs": 1, "batch_size": 20} | other
        assert train_extractor(NOISE, LABELS, **changed).hash != quick.hash
    # In one step of all images only the first weights tell seeds apart.
    whole = [train_extractor(NOISE, LABELS, epochs=1, batch_size=40, seed=i) for i in (0, 1)]
    first, second = (one.features(NOISE) for one in whole)
    assert not torch.allclose(first, second, atol=0.1)


def test_training_refuses() -> None:
    def fails(kind: type[Exception], match: str, *arguments: object, **options: int) -> None:
        with pytest.raises(kind, match=f"train_extractor: .*{match}"):
            train_extractor(*arguments, **options)

    fails(TypeError, r"uint8, got torch\.float32", NOISE.float() / 256.0, LABELS)
    fails(TypeError, r"whole numbers, got torch\.float32", NOISE, LABELS.float())
    fails(ValueError, r"\(n, 1, S, S\).*\(40, 1, 16, 15\)", NOISE[..., 1:], LABELS)
    fails(ValueError, r"\(40, 1, 8, 8\)", NOISE[..., :8, :8], LABELS)
    fails(ValueError, r"\(40, 3, 16, 16\)", NOISE.expand(-1, 3, -1, -1), LABELS)
    fails(ValueError, r"40 labels .*\(39,\)", NOISE, LABELS[1:])
    fails(ValueError, "least -1", NOISE, LABELS - 1)
    fails(ValueError, "epochs >= 1", NOISE, LABELS, epochs=0)
    fails(ValueError, "seed=-1", NOISE, LABELS, seed=-1)


# --- what features see ---------------------------------------------------------------------------


def test_scores_rise_with_the_fault(
    trained: DigitExtractor, digits: tuple[Tensor, Tensor]
) -> None:
    """Noise, blur, lacking classes and memorised images all stand above the floor."""
    images, labels = digits
    reference, real = images[:700], images[700:1400]
    floats = real / 127.5 - 1.0
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(floats.shape, generator=generator)
    kept = images[700:][labels[700:] < 8]
    sets = {
        "real": real,
        "noise .1": floats + 0.1 * noise,
        "noise .3": floats + 0.3 * noise,
        "noise 1": floats + noise,
        "blur": nn.functional.avg_pool2d(floats, 3, 1, 1),
        "two dropped": kept[:700],
        "memorised": real[:35].repeat(20, 1, 1, 1),
        "inverted": -floats,
    }
    y = trained.features(reference)
    levels = {name: x if x.dtype == torch.uint8 else quantise(x) for name, x in sets.items()}
    found = {name: trained.features(one) for name, one in levels.items()}
    fd = {name: frechet_distance(x, y) for name, x in found.items()}
    assert fd["real"] < fd["noise .1"] < fd["noise .3"] < fd["noise 1"]
    faults = [name for name in sets if name not in ("real", "noise .1")]
    assert all(fd[name] > 2.0 * fd["real"] for name in faults), fd
    real_pr, memorised = (precision_recall(found[name], y) for name in ("real", "memorised"))
    assert memorised.precision > 0.8, "precision alone doesn't see it"
    assert memorised.recall < 0.2 < 0.8 < real_pr.recall


def test_features_are_those_of_the_classifier(quick: DigitExtractor) -> None:
    found = quick.features(NOISE)
    assert found.shape == (40, 64)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.equal(quick.features(NOISE.numpy()[..., ::-1].copy()[..., ::-1]), found)
    # More than one batch; oneDNN sums in another order for other batches.
    many = quick.features(NOISE.repeat(14, 1, 1, 1))
    assert torch.allclose(many, found.repeat(14, 1), atol=1e-5)
    logits = quick.classifier(NOISE / 127.5 - 1.0)
    assert torch.allclose(quick.classifier.head(found.relu()), logits, atol=1e-5)


# --- names and errors ----------------------------------------------------------------------------


def test_names_and_hashes(quick: DigitExtractor) -> None:
    assert len(quick.hash) == 12
    assert quick.identity == f"quick@{quick.hash}"
    assert quick.label(10_000) == f"FD(quick@{quick.hash}, n=10000)"
    classifier = copy.deepcopy(quick.classifier)
    assert DigitExtractor(classifier, "other").hash == quick.hash
    expected = quick.features(NOISE)
    with torch.no_grad():
        bias = classifier.trunk[0].bias
        bias.copy_(torch.nextafter(bias, torch.tensor(9.0)))
    assert DigitExtractor(classifier, "quick").hash != quick.hash
    assert torch.equal(quick.features(NOISE), expected)
    for name in ("a b", "", "a@b"):
        with pytest.raises(ValueError, match="DigitExtractor: expected a name of letters"):
            DigitExtractor(classifier, name)


def test_images_are_refused(quick: DigitExtractor) -> None:
    for images in (NOISE[:0], NOISE[0]):
        with pytest.raises(ValueError, match=r"quick: expected images of shape \(n, C, H, W\)"):
            quick.features(images)
    with pytest.raises(TypeError, match=r"quick: expected images as uint8, got torch\.float32"):
        quick.features(NOISE / 127.5 - 1.0)
    with pytest.raises(ValueError, match=r"quick: expected .*\(n, 1, 16, 16\), got \(40, 1, 8, 8"):
        quick.features(NOISE[:, :, :8, :8])
    with pytest.raises(ValueError, match=r"accuracy: expected 40 labels"):
        quick.accuracy(NOISE, LABELS[:7])


# --- files ---------------------------------------------------------------------------------------


def test_extractor_comes_back(quick: DigitExtractor, tmp_path: Path) -> None:
    path = save_extractor(tmp_path / "a.safetensors", quick)
    found = load_extractor(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert (found.identity, found.classifier.size) == (quick.identity, 16)
    assert torch.equal(found.features(NOISE), quick.features(NOISE))
    assert torch.equal(found.classify(NOISE), quick.classify(NOISE))
    with pytest.raises(ValueError, match=r"save_extractor: expected a path ending in"):
        save_extractor(tmp_path / "a.pt", quick)
    with pytest.raises(FileNotFoundError, match=r"load_extractor: expected a file of save_extr"):
        load_extractor(tmp_path / "b.safetensors")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", special_files.KINDS)
def test_extractors_that_are_no_files(tmp_path: Path, kind: str) -> None:
    special_files.replace(tmp_path / "a.safetensors", kind)
    with pytest.raises((OSError, ValueError), match=r"^load_extractor: expected a file.*; check"):
        load_extractor(tmp_path / "a.safetensors")


def test_damaged_extractors(quick: DigitExtractor, tmp_path: Path) -> None:
    """Any changed bit and any truncation is found."""
    path = save_extractor(tmp_path / "a.safetensors", quick)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*rng.integers(header, size=300), *rng.integers(len(data), size=100)]
    for place in places:
        broken = bytearray(data)
        broken[place] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="load_extractor: expected"):
            load_extractor(path)
    for length in [*range(0, header, 50), header, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="load_extractor: expected"):
            load_extractor(path)


def _written(path: Path, tensors: dict[str, Tensor], **described: str) -> Path:
    path.write_bytes(safetensors.torch.save(tensors, described))
    return path


def test_foreign_extractors(tmp_path: Path) -> None:
    kind, path = "diffflow_ext extractor 1", tmp_path / "a.safetensors"
    weights = DigitClassifier(16).state_dict()
    with pytest.raises(ValueError, match="the kind None instead"):
        load_extractor(_written(path, weights))
    with pytest.raises(ValueError, match="size=1000000000"):
        load_extractor(_written(path, weights, kind=kind, size="1000000000", classes="10"))
    with pytest.raises(ValueError, match="size mismatch"):
        load_extractor(_written(path, weights, kind=kind, size="28", classes="10"))
    with pytest.raises(ValueError, match="name"):
        load_extractor(_written(path, weights, kind=kind, size="16", classes="10"))
    path.write_bytes(bytes(2**24 + 1))
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        load_extractor(path)
