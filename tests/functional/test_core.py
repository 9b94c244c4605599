"""What the package calls in the compiled core, and the structs that it fills in there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import diffflow_ext
from diffflow_ext.functional.core import FUNCTIONS, core

STRUCTS = [name for name in FUNCTIONS if name.endswith(("Problem", "Tensors", "Gradients", "Mlp"))]


def called(source: str) -> set[str]:
    """The attributes of `core` that a module asks for."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "core"
    }


def test_the_list_is_what_the_sources_call() -> None:
    assert diffflow_ext.__file__ is not None
    package = Path(diffflow_ext.__file__).parent
    found = set().union(*(called(file.read_text("utf-8")) for file in package.rglob("*.py")))
    assert found == set(FUNCTIONS)
    assert list(FUNCTIONS) == sorted(set(FUNCTIONS))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_core_has_it(name: str) -> None:
    assert hasattr(core, name)


def test_a_call_in_a_source_is_seen() -> None:
    source = "core.run(1)\nx = core.Problem\nother.core.hidden()\n'core.quoted()'"
    assert called(source) == {"run", "Problem"}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_are_zero_at_first_and_misspelled_ones_raise(name: str) -> None:
    struct = getattr(core, name)()
    fields = [field for field in dir(struct) if not field.startswith("_")]
    numbers = []
    for field in fields:
        try:
            value = getattr(struct, field)
        except AttributeError:  # may only be written
            continue
        if isinstance(value, int | float):
            numbers.append(value)
    assert numbers
    assert not any(numbers)
    with pytest.raises(AttributeError):
        struct.no_such_field = 1


def test_fields_keep_what_they_are_given() -> None:
    problem = core.PathsProblem()
    problem.samples, problem.x0, problem.stochasticity = 7, 2**63 + 16, 0.5
    problem.last_step = core.LastStep.tweedie
    assert (problem.samples, problem.x0, problem.stochasticity) == (7, 2**63 + 16, 0.5)
    assert problem.last_step == core.LastStep.tweedie
    problem.drift.width = 5
    problem.work.scratch = 64
    assert (problem.drift.width, problem.score.width, problem.work.scratch) == (5, 0, 64)


def test_more_layers_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="too many hidden layers"):
        core.MlpTensors().hidden = [0] * 17
    with pytest.raises(ValueError, match="expected 1 or 2 networks"):
        core.OdeProblem().nets = [core.Mlp()] * 3


def test_instructions_that_the_processor_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="this processor has no 'mmx'"):
        core.run_paths("mmx", core.PathsProblem())
