"""Arguments that ops refuse, and the texts of the errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import replace_everywhere
from op_cases import DT, KEY, G
from torch import Tensor

from diffflow_ext import functional
from diffflow_ext.functional.checks import check_device, in_words
from diffflow_ext.functional.core import build_info, core

X = torch.zeros(2, 3)
NOISE = {"key": KEY, "step": 0}
ROWS = {"x": X, "x_next": X, "f_next": X, "s_next": X, "dt": DT, "g_next": G}


def em(**changes: Any) -> Tensor:
    return functional.em_step(**{"x": X, "f": X, "dt": DT, "g": G, **NOISE, **changes})


def residual(**changes: Any) -> Tensor:
    return functional.backward_residual(**{**ROWS, **changes})


def cost(**changes: Any) -> Tensor:
    return functional.residual_cost(**{**ROWS, **changes})


def reverse(**changes: Any) -> Tensor:
    rows = {"x_next": X, "f_next": X, "s_next": X, "dt": DT, "g_next": G, **NOISE}
    return functional.reverse_step(**{**rows, **changes})


def affine(**changes: Any) -> Tensor:
    return functional.affine_step(**{"x": X, "a": X, "c_a": 0.5, **changes})


def noised(**changes: Any) -> tuple[Tensor, Tensor]:
    return functional.perturb(**{"x0": X, "alpha_t": 0.8, "sigma_t": 0.6, "key": KEY, **changes})


def normal(**changes: Any) -> Tensor:
    return functional.normal(**{"shape": (2, 3), "key": KEY, **changes})


def philox(**changes: Any) -> Tensor:
    zeros = torch.zeros(3, 4, dtype=torch.int64)
    return functional.philox_words(**{"counter": zeros, "key": zeros[0, :2], **changes})


META = torch.zeros(2, 3, device="meta")
F64 = torch.float64
NAN, INF = float("nan"), float("inf")
Refused = list[tuple[Callable[..., Any], dict[str, Any], str]]

#: What comes after "op: expected".
VALUE_ERRORS: Refused = [
    # shapes
    (em, {"f": X[:1]}, "f to have the shape of x, got (1, 3) and (2, 3)"),
    (em, {"x": torch.tensor(1.0)}, "x of shape (B, *event), got shape ()"),
    (em, {"g": torch.ones(2)}, "g to be a number or a tensor of one element, got shape (2,)"),
    (em, {"dt": torch.ones(0)}, "dt to be a number or a tensor of one element, got shape (0,)"),
    (residual, {"s_next": X[:, :2]}, "s_next to have the shape of x, got (2, 2) and (2, 3)"),
    (residual, {"x_next": X[None]}, "x_next to have the shape of x, got (1, 2, 3)"),
    (cost, {"f_next": X[0]}, "f_next to have the shape of x, got (3,)"),
    (reverse, {"f_next": X[:1]}, "f_next to have the shape of x_next, got (1, 3)"),
    (noised, {"alpha_t": torch.ones(3)}, "alpha_t of shape () or (2,), got (3,)"),
    (noised, {"alpha_t": torch.ones(2, 3)}, "alpha_t of shape () or (2,), got (2, 3)"),
    (noised, {"sigma_t": torch.ones(3)}, "sigma_t of shape () or (2,) or (2, 3), got (3,)"),
    (noised, {"sigma_t": torch.ones(2, 1)}, "sigma_t of shape () or (2,) or (2, 3), got (2, 1)"),
    (normal, {"shape": (2, -1)}, "0 <= shape[1]"),
    (normal, {"shape": (1, 2**34 + 1)}, "at most 2^34 elements a sample"),
    (em, {"x": X[:1, :1].expand(2, 2**34 + 4)}, "at most 2^34 elements a sample, got x"),
    (philox, {"counter": torch.zeros(3, dtype=torch.int64)}, "counter of shape (*, 4), got (3,)"),
    (
        philox,
        {"key": torch.zeros(2, 2, dtype=torch.int64)},
        "key of shape (2,) or (3, 2), got (2, 2)",
    ),
    # dtypes
    (em, {"g": torch.tensor(1)}, "a tensor g to be floating and on cpu, got int64 on cpu"),
    (noised, {"alpha_t": torch.tensor(1)}, "alpha_t to be floating and on cpu, got torch.int64"),
    # devices
    (em, {"x": META, "f": META}, "x on the CPU or a CUDA device, got meta; move it there first"),
    (em, {"f": META}, "f on the device of x (cpu), got meta"),
    (residual, {"x_next": META}, "x_next on the device of x (cpu), got meta"),
    (em, {"g": torch.ones((), device="meta")}, "a tensor g to be floating and on cpu, got"),
    (em, {"key": KEY.to_tensor("meta")}, "a key tensor of shape (2,), int64, on cpu, got"),
    (noised, {"sigma_t": torch.ones(2, device="meta")}, "sigma_t to be floating and on cpu"),
    (normal, {"device": "meta"}, "device on the CPU or a CUDA device, got meta"),
    (
        philox,
        {"counter": torch.zeros(3, 4, dtype=torch.int64, device="meta")},
        "counter on the CPU or a CUDA device, got meta",
    ),
    # values
    (em, {"dt": 0.0}, "dt > 0, got dt=0.0"),
    (em, {"dt": -DT}, "dt > 0, got dt=-0.05"),
    (em, {"dt": NAN}, "dt to be finite, got dt=nan"),
    (em, {"g": INF}, "g to be finite, got g=inf"),
    (em, {"g": 0}, "g > 0, got g=0"),
    (em, {"g": 1e-50}, "g between 1.18e-38 and 3.4e+38, the range of float32, got g=1e-50"),
    (em, {"dt": 1e39}, "dt between 1.18e-38 and 3.4e+38"),
    (residual, {"g_next": -1.0}, "g_next > 0, got g_next=-1.0"),
    (cost, {"g_next": NAN}, "g_next to be finite, got g_next=nan"),
    (reverse, {"stochasticity": -0.5}, "stochasticity >= 0, got -0.5"),
    (reverse, {"stochasticity": NAN}, "stochasticity to be finite"),
    (reverse, {"stochasticity": 1e30}, "stochasticity <= 1e+09, got 1e+30; 1 is the process"),
    (noised, {"sigma_t": -0.1}, "sigma_t >= 0, got -0.1"),
    (noised, {"alpha_t": INF}, "alpha_t to be finite, got alpha_t=inf"),
    (philox, {"counter": torch.full((3, 4), 2**32)}, "counter in [0, 2^32)"),
    (philox, {"key": torch.tensor([-1, 0])}, "key in [0, 2^32)"),
    # keys, steps and samples
    (em, {"key": torch.zeros(3, dtype=torch.int64)}, "a key tensor of shape (2,), int64, on cpu"),
    (em, {"key": torch.zeros(2)}, "a key tensor of shape (2,), int64, on cpu, got (2,), float32"),
    (em, {"step": -1}, "0 <= step < 16777216, got step=-1"),
    (em, {"step": 2**24}, "0 <= step < 16777216, got step=16777216"),
    (em, {"sample_offset": -1}, "0 <= sample_offset < 4294967296, got sample_offset=-1"),
    (em, {"sample_offset": 2**32}, "0 <= sample_offset < 4294967296, got"),
    (em, {"sample_offset": 2**32 - 1}, "sample_offset + batch <= 2^32, got 4294967295 + 2; use"),
    (reverse, {"sample_offset": 2**32 - 1}, "sample_offset + batch <= 2^32"),
    (noised, {"step": 2**24}, "0 <= step < 16777216"),
    (normal, {"purpose": "colour"}, "purpose to be one of ['forward'"),
    # the affine step
    (affine, {"a": X[:1]}, "a to have the shape of x, got (1, 3) and (2, 3)"),
    (affine, {"c_x": torch.ones(2)}, "c_x to be a number or a tensor of one element, got shape"),
    (affine, {"c_a": torch.tensor(1)}, "a tensor c_a to be floating and on cpu, got int64 on cpu"),
    (affine, {"c_b": 0.5}, "b, because c_b is not 0; give both or neither"),
    (affine, {"c_b": torch.zeros(())}, "b, because c_b is not 0; give both or neither"),
    (affine, {"noise_scale": 0.5}, "a key, because noise_scale is not 0; pass key=NoiseKey(seed"),
    (affine, {"noise_scale": torch.zeros(())}, "a key, because noise_scale is not 0"),
    (affine, {"noise_scale": -0.5, "key": KEY}, "noise_scale >= 0, got noise_scale=-0.5"),
    (affine, {"noise_scale": torch.tensor(-0.5), "key": KEY}, "noise_scale >= 0, got"),
    (affine, {"noise_scale": torch.tensor(NAN), "key": KEY}, "noise_scale >= 0, got"),
    (affine, {"c_a": NAN}, "c_a to be finite, got c_a=nan"),
    (affine, {"c_a": -1e39}, "|c_a| <= 3.4e+38, the range of float32, got c_a=-1e+39; rescale"),
    (affine, {"c_a": torch.tensor(1e39, dtype=F64)}, "|c_a| <= 3.4e+38, the range of float32"),
    (affine, {"c_x": torch.tensor(NAN)}, "|c_x| <= 3.4e+38, the range of float32, got c_x=nan"),
    (affine, {"x": X[:1, :1].expand(2, 2**34 + 4)}, "at most 2^34"),
    # numbers in tensors
    (em, {"dt": torch.tensor(0.0)}, "dt > 0"),
    (em, {"g": torch.tensor(-1.0)}, "g > 0"),
    (em, {"g": torch.tensor(NAN)}, "g > 0"),
    (residual, {"g_next": torch.tensor(0.0)}, "g_next > 0"),
    (noised, {"sigma_t": torch.tensor([0.5, -1.0])}, "sigma_t >= 0, got -1"),
    (noised, {"sigma_t": torch.full((2, 3), -1.0)}, "sigma_t >= 0, got -1"),
]

TYPE_ERRORS: Refused = [
    # shapes
    (normal, {"shape": ()}, "shape to be a shape (B, *event), got ()"),
    (normal, {"shape": 3}, "shape to be a shape (B, *event), got 3"),
    (normal, {"shape": (2, 1.5)}, "shape[1] to be an integer, got 1.5"),
    # dtypes
    (em, {"x": X.bfloat16()}, "x to be float32 or float64, got bfloat16; states keep"),
    (em, {"x": X.to(torch.complex64)}, "x to be float32 or float64, got complex64"),
    (em, {"f": X.to(torch.complex64)}, "f to be float32, float64, bfloat16 or float16, got"),
    (residual, {"x_next": X.double()}, "x_next to have the dtype of x (float32), got float64"),
    (reverse, {"s_next": X.bool()}, "s_next to be float32, float64, bfloat16 or float16"),
    (normal, {"dtype": torch.int64}, "a floating dtype, got torch.int64"),
    (philox, {"counter": torch.zeros(3, 4)}, "counter to be int64, got torch.float32"),
    # kinds
    (em, {"x": [[0.0]]}, "x to be a tensor, got list"),
    (em, {"f": np.zeros((2, 3))}, "f to be a tensor, got ndarray"),
    (em, {"x": X.to_sparse()}, "x to be dense, got layout torch.sparse_coo"),
    (em, {"dt": True}, "dt to be a number, got True"),
    (em, {"g": None}, "g to be a number, got None"),
    (philox, {"key": [0, 0]}, "key to be a tensor, got list"),
    # keys, steps and samples
    (em, {"key": 5}, "key to be a NoiseKey or the tensor of NoiseKey.to_tensor, got int"),
    (em, {"step": 1.0}, "step to be an integer, got 1.0"),
    # the affine step
    (affine, {"x": X.bfloat16()}, "x to be float32 or float64, got bfloat16"),
    (affine, {"a": X.long()}, "a to be float32, float64, bfloat16 or float16, got int64"),
    (affine, {"b": X.bool()}, "b to be float32, float64, bfloat16 or float16, got bool"),
    (affine, {"c_a": True}, "c_a to be a number, got True"),
    (affine, {"noise_scale": 1.0, "key": 5}, "key to be a NoiseKey or the tensor of"),
]

OPS = {
    em: "em_step",
    residual: "backward_residual",
    cost: "residual_cost",
    reverse: "reverse_step",
    affine: "affine_step",
    noised: "perturb",
    normal: "normal",
    philox: "philox_words",
}


def refusal(op: Callable[..., Any], changes: dict[str, Any], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        op(**changes)
    return str(caught.value)


@pytest.mark.parametrize(("op", "changes", "text"), VALUE_ERRORS)
def test_bad_values_are_refused(
    op: Callable[..., Any], changes: dict[str, Any], text: str
) -> None:
    assert refusal(op, changes, ValueError).startswith(f"{OPS[op]}: expected {text}")


@pytest.mark.parametrize(("op", "changes", "text"), TYPE_ERRORS)
def test_bad_types_are_refused(op: Callable[..., Any], changes: dict[str, Any], text: str) -> None:
    assert refusal(op, changes, TypeError).startswith(f"{OPS[op]}: expected {text}")


def test_good_arguments_of_the_error_table_pass() -> None:
    for op in OPS:
        op()
    em(sample_offset=2**32 - 2, step=2**24 - 1, dt=1)


def test_a_cuda_tensor_in_a_cpu_build_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        device = torch.device("cuda", 0)

    note = "no working CUDA compiler was found"
    replace_everywhere(monkeypatch, build_info, lambda: {"cuda": False, "cuda_note": note})
    with pytest.raises(RuntimeError) as caught:
        check_device("em_step", "x", OnCuda())  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith("em_step: CUDA tensor given as x, but this build has no CUDA kernels (")
    assert note in text
    assert "DIFFFLOW_CUDA=ON" in text
    assert "build_info()" in text


@pytest.mark.skipif(build_info()["cuda"], reason="this build has CUDA kernels")
def test_the_core_itself_refuses_a_device_it_cannot_reach() -> None:
    out = torch.zeros(4)
    with pytest.raises(RuntimeError, match="no CUDA kernels; reinstall it with DIFFFLOW_CUDA=ON"):
        core.normal((0, 0, 0, 1, 4), (1, 0, 0, 0, 0, 0), out.data_ptr())


def test_the_core_itself_refuses_types_it_has_no_kernels_for() -> None:
    for types in (-1, 4):
        with pytest.raises(ValueError, match="expected a code from 0 to 3"):
            core.normal((-1, 0, types, 1, 4), (1, 0, 0, 0, 0, 0), 0)
        with pytest.raises(ValueError, match="expected a code from 0 to 3"):
            core.em_step((-1, 0, types, 1, 4), (1, 0, 0, 0, 0, 0), (1, 0), (1, 0), 0, 0, 0)


def test_a_message_has_no_addresses() -> None:
    for value in (object(), [object()], em, lambda: None):
        assert " at 0x" in repr(value)
        assert "0x" not in in_words(value)
    assert in_words("a word") == "'a word'"
