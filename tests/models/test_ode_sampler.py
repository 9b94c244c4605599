"""Sampling by an ODE as a plain module: values, torch.export, ONNX, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export, save

from diffflow_ext import DDPM, NFDM, DiffFlowSDE, DiNof, NoiseKey, TimeGrid
from diffflow_ext.engines import ProbabilityFlow, integrate
from diffflow_ext.flows import StandardNormal, spline_flow
from diffflow_ext.models import OdeSampler
from diffflow_ext.nets import FourierMLP, UNet
from diffflow_ext.processes import VE

F64 = torch.float64
GRID = TimeGrid.power(6, 0.5)


def net(num_classes: int = 0) -> nn.Module:
    """A perceptron that is not zero, as a new one is."""
    made = FourierMLP(2, width=16, depth=1, num_classes=num_classes)
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


def build(name: str, num_classes: int = 0) -> Any:
    torch.manual_seed(0)
    if name == "diffflow":
        return DiffFlowSDE(net(num_classes), net(num_classes), diffusion=0.7)
    if name == "dinof":
        return DiNof(net(num_classes), process=VE(), t_cutoff=0.6)
    if name == "ddpm":
        return DDPM(net(num_classes))
    forward = (
        nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 8)) if name == "nfdm" else None
    )
    return NFDM(net(num_classes), forward)


def grid_of(name: str) -> Any:
    return GRID if name == "diffflow" else 6


NAMES = ("diffflow", "dinof", "ddpm", "nfdm", "linear nfdm")


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_solver_with_kernels(name: str, solver: Any) -> None:
    model, key = build(name).double(), NoiseKey(3, 1)
    noise = StandardNormal().sample((5, 2), key, dtype=F64)
    sampler = OdeSampler(model, grid_of(name), solver)
    if name == "diffflow":
        wanted = model.sample((5, 2), GRID, key, 0.0, solver=solver)
    elif name == "dinof":
        wanted = model.sample((5, 2), 6, key, sampler="ode", solver=solver)
    elif name == "ddpm":
        flow = ProbabilityFlow((model.eps_net,), model.process.flow_coefficients)
        grid = TimeGrid.power(6, 1.0, 1 / 1000, model.process.ode_power)
        wanted, _ = integrate(flow, noise, grid, reverse=True, solver=solver)
    else:
        grid = TimeGrid.power(6, 1.0, 0.0, 1.0)
        wanted, _ = integrate(model.probability_flow(), noise, grid, reverse=True, solver=solver)
        wanted = wanted / model.process.alpha(torch.tensor(0.0, dtype=F64))
    with torch.no_grad():
        torch.testing.assert_close(sampler(noise), wanted, rtol=1e-10, atol=1e-10)


def test_samples_of_a_gaussian_have_its_scale() -> None:
    """Of centred normal data the ODE only scales: by the ratio of standard deviations."""
    process, spread = DDPM(net()).process, 1.7

    class Exact(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            alpha, sigma = process.alpha(t), process.sigma(t)
            return sigma * x / ((alpha * spread) ** 2 + sigma**2)

    noise = torch.randn(4, 3, dtype=F64)
    first = torch.tensor(1 / 1000, dtype=F64)
    scale = ((process.alpha(first) * spread) ** 2 + process.sigma(first) ** 2).sqrt()
    last = torch.tensor(1.0, dtype=F64)
    scale = scale / ((process.alpha(last) * spread) ** 2 + process.sigma(last) ** 2).sqrt()
    samples = OdeSampler(DDPM(Exact(), process), 300, "rk4")(noise)
    # The rate of a chain jumps at its 1000 times.
    torch.testing.assert_close(samples, noise * scale, rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_exported_program_takes_any_batch_and_needs_no_kernel(name: str) -> None:
    sampler, program = exported(name)
    own = [str(node.target) for node in program.graph.nodes if "diffflow" in str(node.target)]
    assert own == []
    noise = torch.randn(7, 2)
    torch.testing.assert_close(program.module()(noise), sampler(noise))


def test_program_runs_where_the_package_is_not_installed(tmp_path: Path) -> None:
    (sampler, program), noise = exported("diffflow"), torch.randn(7, 2)
    save(program, tmp_path / "sampler.pt2")
    torch.save(noise, tmp_path / "noise.pt")
    script = """
import sys, torch
sys.modules["diffflow_ext"] = None
program = torch.export.load("sampler.pt2")
torch.save(program.module()(torch.load("noise.pt")).detach(), "samples.pt")
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, check=True)
    samples = torch.load(tmp_path / "samples.pt")
    torch.testing.assert_close(samples, sampler(noise).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["diffflow", "unet", "perceptron"])
def test_onnx_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module: nn.Module = OdeSampler(build("diffflow"), GRID)
    noise = torch.randn(7, 2)
    inputs: tuple[Tensor, ...] = (noise,)
    if name == "unet":
        unet = UNet(1, 8, base=8, mults=(1, 2), blocks=1, attention=(4,))
        for p in unet.parameters():
            nn.init.normal_(p, std=0.1)
        module, inputs = unet, (torch.rand(3), torch.randn(3, 1, 8, 8))
    elif name == "perceptron":
        module, inputs = net(), (torch.rand(7), noise)
    names, module = ["t", "x"][-len(inputs) :], module.eval()
    shapes = tuple({0: Dim("batch", min=1)} for _ in inputs)
    program = torch.onnx.export(module, inputs, input_names=names, dynamo=True,
                                dynamic_shapes=shapes, verbose=False)  # fmt: skip
    assert program is not None
    program.save(tmp_path / "model.onnx")
    # Another batch than the one it was traced with.
    inputs = tuple(torch.cat([value, value[:2] + 0.25]) for value in inputs)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (values,) = session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})
    wanted = module(*inputs).detach()
    assert wanted.std() > 0.01
    torch.testing.assert_close(torch.from_numpy(values), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_context_is_an_input(name: str) -> None:
    model = build(name, num_classes=3) if name != "nfdm" else build("linear nfdm", 3)
    sampler = OdeSampler(model, grid_of(name)).eval()
    noise, labels = torch.randn(6, 2), torch.tensor([0, 1, 2, 2, 1, 0])
    both = sampler(noise, labels)
    for label in range(3):
        rows = labels == label
        torch.testing.assert_close(both[rows], sampler(noise[rows], labels[rows]))
    assert (both - sampler(noise, (labels + 1) % 3)).abs().max() > 1e-3
    batch = {0: Dim("batch", min=2)}
    program = export(sampler, (noise, labels), dynamic_shapes=(batch, batch))
    torch.testing.assert_close(program.module()(noise[:4], labels[:4]), both[:4])


def test_gradients_are_those_of_finite_differences() -> None:
    sampler = OdeSampler(build("ddpm").double(), 3)
    noise = torch.randn(2, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(sampler, (noise,))


def test_flow_of_dinof_is_drawn_from_before() -> None:
    torch.manual_seed(0)
    model = DiNof(net(), flow=spline_flow(2), t_cutoff=0.6)
    key = NoiseKey(2)
    draws = model.prior.sample((5, 2), key)
    wanted = model.sample((5, 2), 6, key, sampler="ode", solver="heun")
    torch.testing.assert_close(OdeSampler(model, 6)(draws).detach(), wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((nn.Linear(2, 2), 6), TypeError, r"DiffFlowSDE, DiNof, NFDM or DDPM, got Linear"),
        ((build("diffflow"), 6), TypeError, r"expected grid to be a TimeGrid, got int"),
        ((build("ddpm"), GRID), ValueError, r"grid from a time > 0"),
        ((build("ddpm"), 6, "dopri5"), ValueError, r"'rk4'.*got 'dopri5'"),
        ((DDPM(lambda t, x: x), 6), TypeError, r"networks that are modules of torch.*forward"),
    ],
)
def test_it_refuses(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"OdeSampler: .*{words}"):
        OdeSampler(*arguments)


def test_it_refuses_what_is_no_noise() -> None:
    sampler = OdeSampler(build("ddpm"), 3)
    with pytest.raises(TypeError, match="OdeSampler: expected noise"):
        sampler(torch.ones(3, 2, dtype=torch.int64))


def test_it_refuses_a_network_of_another_shape() -> None:
    class Narrow(nn.Module):
        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return x[:, :1]

    with pytest.raises(ValueError, match=r"net\(t, x\) to have the shape of x, got \(4, 1\)"):
        OdeSampler(DDPM(Narrow()), 3)(torch.randn(4, 2))
    with pytest.raises(TypeError, match=r"got float32 parameters and float64 data"):
        OdeSampler(build("ddpm"), 3)(torch.randn(4, 2, dtype=F64))


@cache
def exported(name: str) -> tuple[OdeSampler, torch.export.ExportedProgram]:
    """A sampler and its program, made once: of few steps, as an export takes long."""
    sampler = OdeSampler(build(name), GRID if name == "diffflow" else 2).eval()
    shapes = ({0: Dim("batch", min=1)},)
    return sampler, export(sampler, (torch.randn(4, 2),), dynamic_shapes=shapes)
