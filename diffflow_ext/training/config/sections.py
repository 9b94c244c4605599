"""The sections of a configuration: fields with their help texts and defaults.

None stands for a default that depends on the data or on another field, which `resolve` fills in;
a field that the run doesn't read stays None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from diffflow_ext.models.learned_forward import MAX_START

from . import rules
from .rules import Chosen, Maybe, Section, whole


@dataclass(frozen=True)
class Data(Section):
    """Training data."""

    #: A built-in set (see: diffflow data list) or a file.
    data: Annotated[Positional[str], rules.TEXT, arg(metavar="DATA", help_behavior_hint="")] = ""
    #: Seed of the points of a built-in set; the split of a file is fixed.
    data_seed: Annotated[int, rules.SEED] = 0
    #: Number of training data to use; None takes all.
    limit: Annotated[Maybe[int], whole(1)] = None
    #: Side in pixels to which images are scaled; None leaves them.
    image_size: Annotated[Maybe[int], whole(1, 4096)] = None
    #: Name of the array in an .npz file with several; None takes the only one, or those with names
    #: such as x_train and x_test.
    key: Annotated[Maybe[str], rules.TEXT] = None
    #: Columns of a table file to leave out, such as id,species; those without names are x1, x2 ...
    drop_columns: Annotated[Maybe[str], rules.TEXT] = None
    #: Kinds of columns of a table, such as price=integer,cut=category, where another one is found;
    #: a kind alone is that of all others. Kinds are continuous, heavy (tails), positive (log),
    #: integer, category, drop, and bounded LOW HIGH. In a file of settings this is a table
    #: [columns].
    columns: Annotated[Maybe[str], rules.TEXT] = None
    #: Missing numbers of a table: learn which are missing (mask), or refuse them; None refuses.
    missing: Chosen[Literal["refuse", "mask"]] = None
    #: What the model is conditioned on: label for the classes of images and of built-in sets that
    #: have some, the names of columns of a table, such as cut,price, which are then no data, or
    #: masks for any part of a row or image, to fill in the rest; None for nothing. The models flow
    #: and ffjord take none.
    condition: Annotated[Maybe[str], rules.NAMES] = None
    #: Whether images are mirrored at random; None does what is usual for the set.
    flip: Chosen[Literal["on", "off"]] = None


@dataclass(frozen=True)
class DiffFlowModel(Section):
    """Two SDEs, forward and reverse, that are trained together."""

    #: Steps N of the paths.
    num_steps: Annotated[int, whole(1, rules.MAX_GRID)] = 30
    #: Time of the data.
    t_start: Annotated[float, rules.NOT_NEGATIVE] = 0.0
    #: Time of the noise.
    t_end: Annotated[float, rules.POSITIVE] = 0.05
    #: Exponent of the time grid: t^power is evenly spaced; None takes 0.9, or 0.7 for images.
    power: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Time grid in training: drawn anew for each batch, or fixed.
    grid: Literal["stratified", "power"] = "stratified"
    #: Steps N by iteration in training, such as 0:10,2000:30; auto takes N/6, N/3 and N from 0, 46
    #: and 81 % of the training steps on; off takes N throughout. Sampling uses num-steps.
    progressive: Annotated[str, rules.PROGRESSIVE] = "auto"
    #: Diffusion g at the data; None takes 0.2, or 3 for images.
    diffusion_start: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Diffusion g at the noise, geometric in between; None takes that at the data.
    diffusion_end: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Learn both ends of g together with the networks.
    learn_diffusion: bool = False
    #: Distribution of the last state: N(0, I), or a flow that is trained with the networks.
    prior: Literal["normal", "flow"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("t_start", "t_end")


@dataclass(frozen=True)
class DiNofModel(Section):
    """A linear diffusion up to a time, and a normalizing flow from there on."""

    #: Linear diffusion.
    process: Literal["vp", "subvp", "ve"] = "vp"
    #: Time at which the diffusion ends and the flow begins.
    t_cutoff: Annotated[float, rules.UP_TO_ONE] = 0.6
    #: Weight of times in the score's loss: for samples or for likelihood.
    loss_weight: Literal["variance", "likelihood"] = "variance"
    #: Rate of noise at the data, of vp and subvp; None takes 0.1.
    beta_min: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Rate of noise at time 1, of vp and subvp; None takes 20.
    beta_max: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Noise at the data, of ve; None takes 0.01.
    sigma_min: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Noise at time 1, of ve; None takes 50.
    sigma_max: Annotated[Chosen[float], rules.POSITIVE] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("beta_min", "beta_max")
        self.check_order("sigma_min", "sigma_max")


@dataclass(frozen=True)
class DDPMModel(Section):
    """A diffusion in T steps, whose noise a network predicts."""

    #: Steps T of the diffusion.
    timesteps: Annotated[int, whole(1, rules.MAX_GRID)] = 1000
    #: Schedule of the noise.
    noise_schedule: Literal["linear", "cosine"] = "linear"


@dataclass(frozen=True)
class NFDMModel(Section):
    """A diffusion whose forward process is learned, and known in closed form."""

    #: Forward process: learned, or linear, which is a variational diffusion model.
    forward: Literal["learned", "linear"] = "learned"
    #: Functions of time that a learned process is made of; None takes 2.
    time_functions: Annotated[Chosen[int], whole(1, 16)] = None
    #: Logarithm of signal to noise at the data, for a learned process at most 24; None takes 9.2,
    #: noise of 0.01, and for images 12, noise of 0.0025.
    log_snr_start: Annotated[Chosen[float], rules.LOG_SNR] = None
    #: Logarithm of signal to noise at the noise.
    log_snr_end: Annotated[float, rules.LOG_SNR] = -5.0
    #: Weight of a penalty on the curvature of paths, for samples of few steps; a training step
    #: then costs one more evaluation.
    straightness: Annotated[float, rules.NOT_NEGATIVE] = 0.0
    #: Steps N of sampling.
    num_steps: Annotated[int, whole(1, rules.MAX_GRID)] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("log_snr_end", "log_snr_start")
        start = self.log_snr_start
        if self.forward == "learned" and start is not None and start > MAX_START:
            raise ValueError(
                f"train: log_snr_start={start!r}: expected at most {MAX_START:g} for a"
                " learned process, whose bound has no digits left beyond; lower it, or take"
                " forward='linear'"
            )


@dataclass(frozen=True)
class FFJORDModel(Section):
    """A continuous normalizing flow, solved with adaptive steps."""

    #: Relative tolerance of the solver.
    rtol: Annotated[float, rules.POSITIVE] = 1e-5
    #: Absolute tolerance of the solver.
    atol: Annotated[float, rules.POSITIVE] = 1e-5


Activation = Literal["elu", "gelu", "mish", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class FFJORDNetwork(Section):
    """A perceptron over vectors."""

    #: Factor from time to the argument of the network's sines, whose frequencies go up to 100. The
    #: velocity must be smooth in time, or the solver takes tiny steps.
    time_scale: Annotated[float, rules.POSITIVE] = 0.02
    #: Units in a layer.
    width: Annotated[int, whole(1, rules.MAX_WIDTH)] = 128
    #: Hidden layers after the first.
    depth: Annotated[int, whole(0, rules.MAX_DEPTH)] = 3
    #: Activation.
    activation: Activation = "gelu"


@dataclass(frozen=True)
class Network(Section):
    """A perceptron or a U-Net; a field of the one is refused with the other."""

    #: The default of time_scale for a perceptron.
    perceptron_time_scale: ClassVar[float] = 1.0

    #: Network; None takes a U-Net for images, a perceptron for other data.
    net: Chosen[Literal["mlp", "unet"]] = None
    #: Factor from time to the argument of the networks' sines, whose frequencies go up to 100 in a
    #: perceptron and to 1 in a U-Net; None takes 0.4 for the perceptrons of diffflow, 1 for
    #: others, and 1000 at the last time of a U-Net.
    time_scale: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Units in a layer of a perceptron; None takes 128.
    width: Annotated[Chosen[int], whole(1, rules.MAX_WIDTH)] = None
    #: Hidden layers of a perceptron after the first; None takes 3.
    depth: Annotated[Chosen[int], whole(0, rules.MAX_DEPTH)] = None
    #: Activation of a perceptron; None takes gelu.
    activation: Chosen[Activation] = None
    #: Channels of a U-Net at full size; None takes 64.
    unet_base: Annotated[Chosen[int], whole(1, rules.MAX_WIDTH)] = None
    #: Factors of a U-Net's channels, one for each size; each size is half of the one before. None
    #: takes 1,2,2.
    unet_mults: Annotated[Chosen[str], rules.WHOLE_LIST] = None
    #: Residual blocks of a U-Net at each size; None takes 2.
    unet_blocks: Annotated[Chosen[int], whole(1, 64)] = None
    #: Sizes in pixels at which a U-Net has attention, such as 16,8, or off; None takes 16.
    unet_attention: Annotated[Chosen[str], rules.SIZES] = None
    #: Dropout probability of a U-Net; None takes 0.
    dropout: Annotated[Chosen[float], rules.BELOW_ONE] = None


@dataclass(frozen=True)
class FlowNetwork(Section):
    """A flow of splines or Glow; a field of the one is refused with the other."""

    #: Normalizing flow; None takes glow for images, else splines.
    flow: Chosen[Literal["spline", "glow"]] = None
    #: Autoregressive transforms of a spline flow; None takes 3.
    flow_transforms: Annotated[Chosen[int], whole(1, 1024)] = None
    #: Hidden layers of each transform of a spline flow; None takes 64,64.
    flow_hidden: Annotated[Chosen[str], rules.WHOLE_LIST] = None
    #: Bins of a spline; None takes 8.
    flow_bins: Annotated[Chosen[int], whole(2, 1024)] = None
    #: Scales of Glow; each halves the sides; None takes as many as fit, up to 3.
    glow_levels: Annotated[Maybe[int], whole(1, 16)] = None
    #: Couplings of a scale of Glow; None takes 8.
    glow_blocks: Annotated[Chosen[int], whole(1, 1024)] = None
    #: Channels inside a coupling of Glow; None takes 64.
    glow_hidden: Annotated[Chosen[int], whole(1, rules.MAX_WIDTH)] = None


@dataclass(frozen=True)
class DiffFlowNetwork(FlowNetwork, Network):
    """Drift and score, both perceptrons or U-Nets; and the flow of prior=flow."""

    perceptron_time_scale: ClassVar[float] = 0.4

    #: Factor of the channels of the drift's U-Net; None takes 1.
    drift_multiplier: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Factor of the channels of the score's U-Net; None takes 1.
    score_multiplier: Annotated[Chosen[float], rules.POSITIVE] = None
    #: What the score's network predicts: the score, or the noise, which is -g sqrt(t - t_start)
    #: times that; None takes noise for U-Nets, the score for perceptrons.
    prediction: Chosen[Literal["score", "noise"]] = None
    #: Factor of the drift network's values; None takes 1/(4 T) for perceptrons and 1/T for U-Nets,
    #: with T = t_end - t_start.
    drift_scale: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Factor of the score network's values; None takes 1/(g sqrt(T)), g at the data, for scores,
    #: and 1 for noise.
    score_scale: Annotated[Chosen[float], rules.POSITIVE] = None


@dataclass(frozen=True)
class DiNofNetwork(FlowNetwork, Network):
    """The score, a perceptron or a U-Net; and the flow, of splines or Glow."""

    #: Normalizing flow; None takes glow for images, else splines; none is a Gaussian.
    flow: Chosen[Literal["spline", "glow", "none"]] = None


@dataclass(frozen=True)
class NFDMNetwork(Network):
    """The network that predicts the data, and that of a learned forward process."""

    #: Factor of the units or channels of the forward process's network, which has no dropout; None
    #: takes 0.5.
    forward_multiplier: Annotated[Chosen[float], rules.POSITIVE] = None


@dataclass(frozen=True)
class Optimiser(Section):
    """Adam, and the average of the weights."""

    #: Training steps, one batch each.
    steps: Annotated[int, whole(1)] = 2000
    #: Samples in a batch; None takes 256, or 64 images.
    batch_size: Annotated[Chosen[int], whole(1)] = None
    #: Highest learning rate; None takes 3e-3 for perceptrons (nfdm: 2e-3), 2e-4 for U-Nets.
    learning_rate: Annotated[Chosen[float], rules.POSITIVE] = None
    #: Schedule of the learning rate: cosine to 0 at the end; step halves it after 1/2, 3/4 and 7/8
    #: of the work (network evaluations); constant.
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    #: Steps over which the learning rate rises from 0.
    warmup: Annotated[int, whole(0)] = 200
    #: Largest norm of the gradient; a larger gradient is scaled down to it.
    clip_norm: Annotated[float, rules.POSITIVE] = 1.0
    #: Decay of the averaged weights that sampling uses; lower in the first steps.
    ema_decay: Annotated[float, rules.BELOW_ONE] = 0.999
    #: If a loss or gradient isn't finite: stop with an error, or skip the step and count it.
    on_nonfinite: Literal["stop", "skip"] = "stop"
    #: Share of training samples whose condition is replaced by none, which guided samples need,
    #: or all of which masks hide; None takes 0.1 with a condition.
    label_dropout: Annotated[Chosen[float], rules.BELOW_ONE] = None


@dataclass(frozen=True)
class DiNofOptimiser(Optimiser):
    """Adam, and the average of the weights."""

    #: Highest learning rate of the flow; the score has its own.
    flow_learning_rate: Annotated[float, rules.POSITIVE] = 1e-3
    #: Largest norm of the flow's gradient; the score has its own.
    flow_clip_norm: Annotated[float, rules.POSITIVE] = 1.0


@dataclass(frozen=True)
class FlowOptimiser(Optimiser):
    """Adam, and the average of the weights."""

    #: Highest learning rate.
    learning_rate: Annotated[float, rules.POSITIVE] = 1e-3


@dataclass(frozen=True)
class Run(Section):
    """Seed, device, and what is saved."""

    #: Seed of the initial weights, the order of the data and the noise.
    seed: Annotated[int, rules.SEED] = 0
    #: Precision of the networks.
    autocast: Literal["off", "bf16"] = "off"
    #: Device: cpu, cuda, cuda:INDEX; auto takes a GPU if the build has kernels for it.
    device: Annotated[str, rules.DEVICE] = "auto"
    #: Split weights, moments and averages among several processes (FSDP2).
    shard: bool = False
    #: CPU threads; None takes torch's number.
    threads: Annotated[Maybe[int], whole(1)] = None
    #: Steps between checkpoints.
    save_every: Annotated[int, whole(1)] = 500
    #: Number of checkpoints to keep.
    keep_checkpoints: Annotated[int, whole(1)] = 3
    #: Continue training while a checkpoint is written.
    async_save: bool = False
    #: Steps between lines of metrics.jsonl.
    log_every: Annotated[int, whole(1)] = 10
    #: Where these lines go too: into RUN/tensorboard, or to Weights & Biases or MLflow; each needs
    #: the extra of its name.
    log_to: Literal["off", "tensorboard", "wandb", "mlflow"] = "off"


@dataclass(frozen=True)
class DiffFlowRun(Run):
    """Seed, device, memory, and what is saved."""

    #: Store every k-th state of a path for the gradient and recompute the others; 0 stores the
    #: whole graph.
    checkpoint_every: Annotated[int, whole(0)] = 1
    #: Replay each step on a GPU as one CUDA graph; None does where that is possible. Dropout,
    #: several processes and skipped steps exclude it.
    cuda_graph: Maybe[Literal["on", "off"]] = None
    #: Who computes the path loss: compiled code for perceptrons (fused), the adjoint for any
    #: network (autograd), or the faster of those possible.
    engine: Literal["auto", "fused", "autograd"] = "auto"
    #: States at which one call evaluates the score; more need more memory, and pay on a GPU with
    #: small networks.
    scores_per_call: Annotated[int, whole(1)] = 1
