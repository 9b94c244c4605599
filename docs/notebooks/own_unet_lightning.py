# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network, your own trainer
#
# A model here is an `nn.Module` with a loss, so it fits into any trainer. This notebook trains DiffFlow on the 8 x 8 digits of scikit-learn with two small
# U-Nets written by hand, in [Lightning](https://lightning.ai/docs/pytorch/stable/) (`pip install 'diffflow_ext[notebooks]'`), stops in the middle,
# resumes from the checkpoint, and samples.

# %%
import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from diffflow_ext import DiffFlowSDE, NoiseKey, TimeGrid
from diffflow_ext.data import batch_indices
from diffflow_ext.figures import image_rows, loss_curve
from diffflow_ext.nets import NoiseScore

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A network
#
# All that is asked of a network is `net(t, x)`: t of shape () or (B,), x of shape (B, *event), and a value of the shape of x. This one goes down from 8 x 8 to 4 x 4 and
# back up, with a skip connection. Its value begins at zero, and `scale` is about the size of what it is to learn. (A full one is
# [`nets.UNet`](../api/nets.md).)


# %%
class TinyUNet(nn.Module):
    def __init__(self, t_end: float, scale: float = 1.0, width: int = 16) -> None:
        super().__init__()
        self.t_end, self.scale = t_end, scale
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        angles = (t / self.t_end).reshape(-1, 1) * 2.0 ** torch.arange(4, device=x.device)
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype))
        fine = functional.silu(self.enter(x) + embedding[:, :, None, None])
        coarse = functional.silu(self.down(fine))
        coarse = functional.silu(coarse + self.middle(coarse))
        both = torch.cat([fine, self.up(coarse)], dim=1)
        return self.scale * self.last(functional.silu(self.leave(both)))


# %% [markdown]
# ## A LightningModule
#
# `training_step` calls `mean_loss` and nothing else. The noise of a step is a `NoiseKey` of its number: so it needs no place in a checkpoint, and is the same
# after a resume. For pictures the score is made of a network that predicts noise (`NoiseScore`), because the score itself grows without bound towards
# the data. The network isn't a perceptron, so the loss is computed by the adjoint: one state a step in memory, whatever the network.


# %%
class Pictures(lightning.LightningModule):
    def __init__(self, t_end: float = 0.05, g: float = 3.0, num_steps: int = 5) -> None:
        super().__init__()
        drift = TinyUNet(t_end, scale=1 / t_end)
        score = NoiseScore(TinyUNet(t_end), g, floor=1e-4 * t_end)
        self.sde = DiffFlowSDE(drift, score, diffusion=g)
        self.grid = TimeGrid.power(num_steps, t_end, power=0.7)
        self.bounds: list[float] = []

    def training_step(self, x0: Tensor, index: int) -> Tensor:
        key = NoiseKey(seed=0, stream=self.global_step)
        loss = self.sde.mean_loss(x0, self.grid, key)
        bound = loss.detach() + self.sde.bound_minus_loss(x0, self.grid, key).mean()
        self.bounds.append(float(bound))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=4e-3)


# %% [markdown]
# ## Data
#
# The pictures have 17 grey levels, 0 to 16. A density needs values without gaps, so each gets uniform noise of the width of a level, and
# then lies in [-1, 1]. A batch is a function of its number, as the noise is.


# %%
class Batches(Dataset):
    def __init__(self, levels: Tensor, count: int, size: int = 32) -> None:
        self.levels, self.count, self.size = levels, count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, step: int) -> Tensor:
        rows = self.levels[batch_indices(len(self.levels), self.size, seed=0, step=step)]
        noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(step))
        return (rows + noise) * (2 / 17) - 1


levels = torch.tensor(load_digits().images, dtype=torch.float32)[:, None]
loader = DataLoader(Batches(levels, count=50), batch_size=None)

# %% [markdown]
# ## Train, stop, resume
#
# Two epochs first, which leave a checkpoint. Then a new module, with other weights, continues from it up to epoch six.


# %%
def trainer(epochs: int, *callbacks: lightning.Callback) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, gradient_clip_val=1.0, logger=False,
        callbacks=list(callbacks), enable_checkpointing=bool(callbacks), default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


lightning.seed_everything(0, verbose=False)
first = Pictures()
trainer(2, ModelCheckpoint(folder, filename="two")).fit(first, loader)

second = Pictures()
trainer(6).fit(second, loader, ckpt_path=folder / "two.ckpt")
print(f"steps before {len(first.bounds)}, after {len(second.bounds)}")

bounds = [bound / 64 for bound in first.bounds + second.bounds]
loss_curve(range(len(bounds)), bounds, title="Digits", label="bound of -log p, nats a pixel")

# %% [markdown]
# The curve goes on where it stopped. Does a resumed run equal one that was never stopped? Weights, Adam's moments and the number of the step are in the
# checkpoint, noise and batches are functions of that number; nothing else counts. A small trial:

# %%
short = DataLoader(Batches(levels, count=10), batch_size=None)
lightning.seed_everything(0, verbose=False)
whole = Pictures()
half, resumed = Pictures(), Pictures()
half.load_state_dict(whole.state_dict())
trainer(2).fit(whole, short)
trainer(1, ModelCheckpoint(folder, filename="half")).fit(half, short)
trainer(2).fit(resumed, short, ckpt_path=folder / "half.ckpt")
is_same = all(
    torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
)
print(f"equal to the last bit: {is_same}")

# %% [markdown]
# ## Samples
#
# `last_step="mean"` leaves out the noise of the last step, which for pictures is only grain.

# %%
sde, grid = second.sde.eval(), second.grid
samples = sde.sample((20, 1, 8, 8), grid, NoiseKey(1), last_step="mean")
with torch.no_grad():
    path = sde.sample_path((20, 1, 8, 8), grid, NoiseKey(1), last_step="mean")
early = first.sde.sample((20, 1, 8, 8), first.grid, NoiseKey(1), last_step="mean")
real = torch.stack([*loader.dataset[0][:20]])
image_rows({"data": real, "two epochs": early, "six epochs": samples}, "Digits")

# %% [markdown]
# After a quarter of a minute strokes and loops are there, and some digits. That is early: the [published runs](../results.md#images) take many times
# as many steps and larger networks. Four samples on their way, from noise on the right:

# %%
image_rows({f"sample {i}": path[:, i] for i in range(4)}, "From noise (right) to data (left)")

# %% [markdown]
# With a GPU nothing changes but `accelerator`. For runs with averaged weights, several processes and resuming out of the box there is the library's own trainer, `diffflow train`
# ([how to](../howto/pictures.md)).
