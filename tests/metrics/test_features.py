"""Extractors: what they see, that they stay what they are, and that files run no code."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diffflow_ext.metrics import c2st, frechet_distance, precision_recall
from diffflow_ext.metrics.features import (
    DigitClassifier,
    DigitExtractor,
    Extractor,
    load_extractor,
    load_features,
    load_weights,
    pca_extractor,
    quantise,
    save_extractor,
    train_extractor,
)

NOISE = torch.randint(0, 256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(40) % 3


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 digits, shuffled, of 8x8 pixels that are doubled to 16x16."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    found = datasets.load_digits()
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
    fails(ValueError, r"\(40, 1, 8, 8\).*pca_extractor", NOISE[..., :8, :8], LABELS)
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
    floats = real.float() / 127.5 - 1.0
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
    found = {name: trained.features(one) for name, one in sets.items()}
    fd = {name: frechet_distance(x, y) for name, x in found.items()}
    assert fd["real"] < fd["noise .1"] < fd["noise .3"] < fd["noise 1"]
    faults = [name for name in sets if name not in ("real", "noise .1")]
    assert all(fd[name] > 2.0 * fd["real"] for name in faults), fd
    told = {name: c2st(x, y).accuracy for name, x in found.items()}
    assert abs(told["real"] - 0.5) < 0.06
    assert told["noise 1"] > 0.8
    real_pr, memorised = (precision_recall(found[name], y) for name in ("real", "memorised"))
    assert memorised.precision > 0.8, "precision alone doesn't see it"
    assert memorised.recall < 0.2 < 0.8 < real_pr.recall
    assert memorised.coverage < 0.6 < 0.9 < real_pr.coverage
    dropped = precision_recall(found["two dropped"], y)
    assert dropped.recall < real_pr.recall - 0.05 < dropped.precision


def test_floats_and_levels_have_the_same_features(quick: DigitExtractor) -> None:
    u = torch.rand(NOISE.shape, generator=torch.Generator().manual_seed(3))
    continuous = 2.0 * (NOISE + 0.999 * u) / 256.0 - 1.0
    expected = quick.features(NOISE)
    assert expected.shape == (40, 64)
    assert expected.dtype == torch.float32
    assert not expected.requires_grad
    assert torch.equal(quick.features(continuous), expected)
    assert torch.equal(quick.features(continuous.double().numpy()), expected)
    # oneDNN sums in another order for other batches.
    assert torch.allclose(quick.features(NOISE, batch_size=7), expected, atol=1e-5)


@given(st.integers(0, 255), st.floats(0.0, 1.0, exclude_max=True, width=16))
def test_quantising_undoes_dequantising(level: int, u: float) -> None:
    x = torch.full((1, 1, 1, 1), 2.0 * (level + u) / 256.0 - 1.0, dtype=torch.float64)
    # In float32 the last ulp below a level is the level itself.
    allowed = {level} if u < 0.9999 else {level, level + 1}
    assert int(quantise(x)) in allowed


def test_quantising_clamps_and_refuses() -> None:
    x = torch.tensor([-1.7, -1.0, 0.0, 0.9999, 1.0, 1.7]).reshape(1, 1, 1, 6)
    assert quantise(x).flatten().tolist() == [0, 0, 128, 255, 255, 255]
    assert torch.equal(quantise(NOISE), NOISE)
    with pytest.raises(ValueError, match=r"quantise: expected images of shape .*\(2, 3\).*None"):
        quantise(torch.zeros(2, 3))
    bad = torch.zeros(40, 1, 4, 4)
    bad[3, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 40 images have NaN"):
        quantise(bad)
    with pytest.raises(ValueError, match="from -1 to 1, got values from 0 to 255"):
        quantise(NOISE.float())
    for wrong in (NOISE.int(), NOISE.numpy().astype(bool), [[[[0.0]]]]):
        with pytest.raises(TypeError, match="quantise: expected images as uint8 or floats"):
            quantise(wrong)


# --- extractors of other modules -----------------------------------------------------------------


class _Sums(nn.Module):
    """Row sums, with dropout that mustn't act and a scale that is a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.9)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        return self.scale * self.dropout(x.float()).sum(dim=(1, 2))


def test_any_module_extracts() -> None:
    module = _Sums()
    extractor = Extractor(module, "sums", pixels="uint8")
    expected = 2.0 * NOISE.float().sum(dim=(1, 2))
    assert torch.equal(extractor.features(NOISE, batch_size=16), expected)
    assert module.training, "the caller's module is left as it was"
    with torch.no_grad():
        module.scale.fill_(3.0)
    assert torch.equal(extractor.features(NOISE), expected)
    floats = Extractor(_Sums(), "sums").features(NOISE)
    assert torch.allclose(floats, 2.0 * (NOISE / 127.5 - 1.0).sum(dim=(1, 2)), atol=1e-4)


def test_names_and_hashes() -> None:
    module = _Sums()
    one = Extractor(module, "sums-1.0")
    assert len(one.hash) == 12
    assert one.identity == f"sums-1.0@{one.hash}"
    assert one.label(10_000) == f"FD(sums-1.0@{one.hash}, n=10000)"
    assert Extractor(_Sums(), "other").hash == one.hash
    assert Extractor(_Sums(), "sums", pixels="uint8").hash != one.hash
    with torch.no_grad():
        module.scale.copy_(torch.nextafter(module.scale, torch.tensor(9.0)))
    assert Extractor(module, "sums").hash != one.hash
    assert Extractor(nn.Flatten(), "flat").hash != Extractor(nn.Identity(), "flat").hash


def test_modules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Extractor: expected a torch\.nn\.Module, got function"):
        Extractor(lambda x: x, "a")
    for name, pixels in (("a b", "float"), ("", "float"), ("a@b", "float"), ("a", "int8")):
        with pytest.raises(ValueError, match="Extractor: expected a name of letters"):
            Extractor(nn.Flatten(), name, pixels=pixels)
    with pytest.raises(ValueError, match=r"features of shape \(40, d\).*got \(40, 1, 16, 16\)"):
        Extractor(nn.Identity(), "same").features(NOISE)
    broken = _Sums()
    broken.scale.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="broken: expected finite features"):
        Extractor(broken, "broken").features(NOISE)
    flat = Extractor(nn.Flatten(), "flat")
    for images, size in ((NOISE[:0], 10), (NOISE, 0)):
        with pytest.raises(ValueError, match="flat: expected at least one image and batch_size"):
            flat.features(images, batch_size=size)


def test_images_of_another_size_are_refused(quick: DigitExtractor) -> None:
    with pytest.raises(ValueError, match=r"quick: expected .*\(n, 1, 16, 16\), got \(40, 1, 8, 8"):
        quick.features(NOISE[:, :, :8, :8])
    with pytest.raises(ValueError, match=r"accuracy: expected 40 labels"):
        quick.accuracy(NOISE, LABELS[:7])


def test_principal_components_against_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn")
    extractor = pca_extractor(NOISE, 5)
    rows = NOISE.flatten(1).double().numpy() / 127.5 - 1.0
    expected = decomposition.PCA(5, svd_solver="full").fit_transform(rows)
    found = extractor.features(NOISE).numpy()
    assert extractor.name == "pca-5"
    signs = np.sign((found * expected).sum(0))
    assert np.allclose(found, signs * expected, atol=1e-4)
    assert pca_extractor(NOISE, 5).hash == extractor.hash
    colour = NOISE[:, :, :4, :4].expand(-1, 3, -1, -1)
    assert pca_extractor(colour, 2).features(colour).shape == (40, 2)
    with pytest.raises(ValueError, match="got width=40 and 40 images"):
        pca_extractor(NOISE, 40)
    with pytest.raises(ValueError, match="images of 256 pixels"):
        extractor.features(colour)


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
    with pytest.raises(TypeError, match="save_extractor: expected an extractor of train_extr"):
        save_extractor(tmp_path / "b.safetensors", pca_extractor(NOISE, 2))
    with pytest.raises(FileNotFoundError):
        load_extractor(tmp_path / "b.safetensors")


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
    with pytest.raises(ValueError, match="other tensors"):
        load_extractor(_written(path, weights, kind=kind, size="28", classes="10"))
    with pytest.raises(ValueError, match="name"):
        load_extractor(_written(path, weights, kind=kind, size="16", classes="10"))
    path.write_bytes(bytes(2**24 + 1))
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        load_extractor(path)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (Path("canary"),))


def test_weights_are_read_and_checked(tmp_path: Path) -> None:
    weights = nn.Linear(3, 2).state_dict()
    torch.save(weights, tmp_path / "plain.pth")
    safetensors.torch.save_file(weights, tmp_path / "plain.safetensors")
    data = (tmp_path / "plain.pth").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / f"net-2015-12-05-{digest[:8]}.pth").write_bytes(data)
    (tmp_path / "net-20151205.pth").write_bytes(data)
    for path in tmp_path.iterdir():
        found = load_weights(path)
        assert sorted(found) == ["bias", "weight"]
        assert torch.equal(found["weight"], weights["weight"])
    wrong = tmp_path / "net-2015-12-05-6726825d.pth"
    wrong.write_bytes(data)
    with pytest.raises(ValueError, match=rf"SHA-256 6726825d\.\.\. of its name, got {digest[:8]}"):
        load_weights(wrong)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Detected pickle")
def test_weights_execute_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Bomb()}, "code.pth")
    Path("pickle.pth").write_bytes(pickle.dumps(_Bomb()))
    torch.save([torch.zeros(2)], "list.pt")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, "nested.pt")
    Path("noise.pth").write_bytes(bytes(range(256)))
    Path("noise.safetensors").write_bytes(bytes(range(256)))
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save("script.pt")
    for path in Path().iterdir():
        with pytest.raises(ValueError, match=f"load_weights: expected {path}"):
            load_weights(path)
    assert not Path("canary").exists()
    with pytest.raises(FileNotFoundError):
        load_weights("missing.pth")


def test_weights_need_a_safe_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(RuntimeError, match=r"expected torch >= 2\.6 .*2\.5\.1"):
        load_weights(tmp_path / "a.pth")


def test_features_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.save("a.npy", rows)
    found = load_features("a.npy")
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), rows)
    with pytest.raises(FileNotFoundError):
        load_features("b.npy")
    np.save("object.npy", np.array([_Bomb()], object), allow_pickle=True)
    np.savez("several.npz", rows)
    Path("pickle.npy").write_bytes(pickle.dumps(_Bomb()))
    Path("short.npy").write_bytes(Path("a.npy").read_bytes()[:-1])
    Path("empty.npy").write_bytes(b"")
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1152921504606846976, 4)}\n"
    length = len(header).to_bytes(2, "little")
    Path("huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + length + header.encode() + bytes(64))
    np.save("text.npy", np.array([["a"]]))
    for path in sorted(set(Path().iterdir()) - {Path("a.npy")}):
        with pytest.raises(ValueError, match=f"load_features: expected {path} to be an .npy"):
            load_features(path)
    assert not Path("canary").exists()
    np.save("a.npy", rows[0])
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        load_features("a.npy")
    np.save("a.npy", rows * np.nan)
    with pytest.raises(ValueError, match="9 of 9 rows"):
        load_features("a.npy")


def test_description_is_plain(quick: DigitExtractor, tmp_path: Path) -> None:
    """Any tool can read what an extractor is called, and its hash, from the header."""
    data = save_extractor(tmp_path / "a.safetensors", quick).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    described = header["__metadata__"]
    assert (described["name"], described["hash"]) == ("quick", quick.hash)
    assert (described["size"], described["classes"]) == ("16", "3")
