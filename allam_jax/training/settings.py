"""Settings of a training run."""

from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from allam_jax.weights.settings import DECAY_SHAPES, WeightsSettings, check_decay

SCHEDULES = ("constant", "cosine", "wsd")
REWARM_MODES = ("linear", "freeze")


class ParameterSettings(Section):
    """The dtype of the trained parameters."""

    param_dtype: str = setting("float32", "dtype of the trained parameters", choices=("float32", "bfloat16", "float16"))


class InitSettings(WeightsSettings, name="init"):
    """What a run starts from."""

    weights: str = setting(
        "",
        "weights directory, Hugging Face directory, or a run's workdir or checkpoint; empty: random parameters",
        path="model",
    )
    optimizer: bool = setting(False, "also take the optimizer's moments (checkpoints only)")
    step: bool = setting(
        False, "also take the step, the random key and the guard: a branch continues where its parent was"
    )
    data: bool = setting(False, "also take the position in the data")


class TrainSettings(Section, name="train"):
    """How long a run is, and how a step is computed."""

    steps: int = setting(100, "updates of the whole run", least=1)
    accumulation: int = setting(1, "micro-batches of a step", least=1)
    z_loss: float = setting(0.0, "weight of log(Z)^2 in the loss; 1e-5 where it is used", least=0, most=1e3)
    loss_chunks: int = setting(4, "the logits exist one chunk of the sequence at a time", least=1)
    log_every: int = setting(1, "steps between rows of metrics.jsonl", least=1)


class TrainableSettings(Section, name="trainable"):
    """Which parameters are trained; the others keep every bit and have no moments."""

    parameters: tuple[str, ...] = setting(
        (), 'names on the path of a parameter, such as ("embedding", "head"); empty: all, or the adapters of lora'
    )
    rows_from: int = setting(
        0, "of the embedding and head only ids from here on: the size of the old vocabulary trains new tokens", least=0
    )


class OptimizerSettings(Section, name="optimizer"):
    """AdamW, and the ramp of a run that starts without moments."""

    b1: float = setting(0.9, "decay of the first moment; its powers are float32", least=0, most=0.9999)
    b2: float = setting(0.95, "decay of the second moment; its powers are float32", least=0, most=0.9999)
    eps: float = setting(1e-8, "added to the root of the second moment", least=1e-30, most=1)
    weight_decay: float = setting(0.1, "decoupled; multiplied by the learning rate, as in torch", least=0, most=1e3)
    no_decay: tuple[str, ...] = setting(
        ("scale",), 'parameters without weight decay, by name: norms; add "embedding" to spare it; biases never decay'
    )
    clip_norm: float = setting(1.0, "largest global gradient norm; 0: not clipped", least=0, most=1e6)
    first_moment_dtype: str = setting(
        "float32",
        "bfloat16 saves 2 bytes a parameter; the second moment stays float32",
        choices=("float32", "bfloat16"),
    )
    average_decay: float = setting(
        0.0, "of an exponential moving average of the weights, written to average/; 0: none", least=0, below=1
    )
    rewarm_steps: int = setting(0, "updates of the ramp while fresh moments fill; 0: none", least=0)
    rewarm_mode: str = setting(
        "linear",
        "linear ramps the learning rate up, freeze holds it at 0 while the moments fill",
        choices=REWARM_MODES,
    )


class ScheduleSettings(Section, name="schedule"):
    """The learning rate over the steps; every schedule warms up first."""

    name: str = setting("constant", "of the schedule", choices=SCHEDULES)
    peak_lr: float = setting(3e-4, "the highest learning rate", least=0, most=1e3)
    warmup_steps: int = setting(0, "steps below the peak", least=0)
    decay_start: int = setting(-1, "wsd: first step of the decay; -1 places it decay_steps before the end", least=-1)
    decay_steps: int = setting(0, "wsd: length of the decay", least=0)
    decay_shape: str = setting("one_minus_sqrt", "wsd: shape of the decay", choices=DECAY_SHAPES)
    final_fraction: float = setting(0.0, "share of peak_lr at which cosine and wsd end", least=0, most=1)

    def check(self) -> None:
        """UserError for an exponential decay to 0."""
        if self.name == "wsd":
            check_decay("schedule", shape=self.decay_shape, final_fraction=self.final_fraction)


class GuardSettings(Section, name="guard"):
    """Which updates are skipped: those that spike or are not finite."""

    window: int = setting(128, "finite steps that say what is normal", least=2, most=100_000)
    sigma: float = setting(
        6.0, "standard deviations above the mean that count as a spike; 0 skips only what is not finite", least=0
    )
    min_history: int = setting(32, "finite steps before anything counts as a spike", least=2)
    max_in_a_row: int = setting(20, "skipped updates in a row that stop the run; 0: never", least=0)

    def check(self) -> None:
        """UserError for a history longer than the window."""
        if self.min_history > self.window:
            raise UserError(
                f"config.guard.min_history = {self.min_history}: expected at most guard.window = {self.window}"
            )


class CheckpointSettings(Section, name="checkpoint"):
    """When a run is saved, and which checkpoints stay."""

    every: int = setting(100, "steps between checkpoints; the last step is always saved", least=0)
    keep_last: int = setting(2, "newest checkpoints that stay; without any a crash would lose the run", least=1)
    keep_every: int = setting(0, "also keep every checkpoint at a multiple of this; 0: none", least=0)
    skip_damaged: bool = setting(
        False,
        "on a resume, move damaged checkpoints aside and go on from the newest whole one; otherwise stop",
        changes_results=False,
    )


class MetricsSettings(Section, name="metrics", changes_results=False):
    """How a run is watched."""

    tensorboard: bool = setting(True, "also write event files for TensorBoard")
    wandb_project: str = setting("", "also log to this Weights & Biases project")
    peak_tflops: float = setting(
        0.0, "of one device, for MFU; 0: as the data sheet of the GPU says, if it is known", least=0
    )
    stall_report_minutes: float = setting(
        10.0,
        "without progress, after which all threads are printed, and again after twice that time; 0: never",
        least=0,
    )
    stall_leave_minutes: float = setting(
        60.0,
        "without progress, after which the run ends with status 75, so that a scheduler restarts it; 0: never",
        least=0,
    )
    profile_steps: tuple[int, ...] = setting(
        (), "(start, stop): a trace of steps start to stop - 1 in WORKDIR/profile, for XProf", least=1
    )

    def check(self) -> None:
        """UserError for steps that are no range."""
        steps = self.profile_steps
        if steps and (len(steps) != 2 or steps[0] >= steps[1]):
            raise UserError(f"config.metrics.profile_steps = {steps}: expected (), or (start, stop) with start < stop")
