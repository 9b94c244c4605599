r"""The fused operations of the discretised SDE pair, each with gradients.

On a grid with steps :math:`\Delta t_i = t_{i+1} - t_i`:

.. math::
    x_{i+1} &= x_i + f_i \Delta t_i + g_i \sqrt{\Delta t_i} \, \delta^F_i \\
    \delta^B_i &= \frac{x_i - x_{i+1} + (f_{i+1} - g_{i+1}^2 s_{i+1}) \Delta t_i}
                       {g_{i+1} \sqrt{\Delta t_i}} \\
    x_i &= x_{i+1} - \left[ f_{i+1} - \tfrac{1 + \lambda^2}{2} g_{i+1}^2 s_{i+1} \right] \Delta t_i
           + \lambda g_{i+1} \sqrt{\Delta t_i} \, \varepsilon

and, for solvers whose coefficients are known, :math:`y = c_x x + c_a a + c_b b + s z`.

Contracts of all ops. States are float32 or float64 of shape (B, *event) on the CPU or a CUDA
device; network outputs may also be bfloat16 or float16. Any strides; inputs are never modified.
Each op is one pass over memory (`perturb` with gradients excepted), deterministic, and safe to
capture in a CUDA graph when its key is a tensor (:meth:`NoiseKey.to_tensor`). Gradients exist in
all tensors, in a tensor `g`, in the factors of `affine_step` and in those of `perturb`, not in
`dt`; second derivatives raise, but for `perturb`, which has them. Under torch.compile the ops do
not break the graph: pass scalars as tensors there if they change, or each new value compiles
again.
"""

from .affine import affine_step
from .noise import PURPOSES, NoiseKey, normal, philox_words
from .perturb import perturb
from .residual import backward_residual, residual_cost
from .steps import em_step, reverse_step

__all__ = [
    "PURPOSES",
    "NoiseKey",
    "affine_step",
    "backward_residual",
    "em_step",
    "normal",
    "perturb",
    "philox_words",
    "residual_cost",
    "reverse_step",
]
