"""`ExperimentConfig`: the parts' own configs, composed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ray_sassl.backbones import BackboneConfig
from ray_sassl.data import DataConfig
from ray_sassl.methods import LAYER_PATTERN, MethodConfig, Network
from ray_sassl.plugins import OPERATIONAL, SEED, FrozenConfig, load_plugin, plugin_field, plugin_names
from ray_sassl.process.errors import UsageError
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.train.config import OptimConfig, TrainConfig, share_of_batch
from ray_sassl.train.metrics import TrackingConfig
from ray_sassl.views.center_crop import CenterCrop, EvaluationView
from ray_sassl.views.recipes import ViewsConfig

_METHODS, _STYLIZERS = "ray_sassl.methods", "ray_sassl.style.stylizers"


def _validation(value: Any) -> Any:
    if isinstance(value, int | float) and not 0 < value < 1:
        raise ValueError(f"validation images are a share of evaluate.train between 0 and 1, or a path; not {value:g}")
    return {"path": value} if isinstance(value, str | list | tuple) else value


class EvaluateConfig(FrozenConfig):
    """The labeled data that encoders are evaluated on, during training and by `ray-sassl evaluate`."""

    train: DataConfig | None = None
    """The images that provide the neighbors and train the probe; without them the run is not evaluated."""
    validation: Annotated[float | DataConfig, BeforeValidator(_validation)] = 0.1
    """What scores during a run, and so searches and early stopping, are measured on: this share of the labeled images of `evaluate.train`,
    the same of every class, which then are not among the neighbors and do not train the probe; or images of their own, `{path: ...}`."""
    validation_seed: int = Field(default=0, ge=0)
    """Of the draw of that share. It is not the run's seed, so that runs with other seeds are measured on the same images."""
    test: DataConfig | None = None
    """What `ray-sassl evaluate` and `compare` measure on, and the last line of a run; nothing is chosen by it."""
    final_test: bool = True
    """Whether the last line of a run has scores on `evaluate.test`, and a run without labeled images ends with a picture of nearest
    neighbors; the trials of a search have neither."""
    size_px: int = Field(default=224, ge=8)
    """Side of the squares that encoders see."""
    crop: CenterCrop = "auto"
    """How an image becomes such a square. `center`: 8/7 of it on the shorter side, of which the middle is cut out, as usual for ImageNet;
    `shorter_side`: the size itself on the shorter side, of which the middle is cut out; `none`: resized to a square. `auto`: `none` up to
    64 px, else `center`. The views equal torchvision's to the bit."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's filter, with anti-aliasing."""
    network: Network = "student"
    """Whose features are evaluated, during a run and by `ray-sassl evaluate`, and exported: `student` is the trained encoder, `teacher` its
    moving average (MoCo, MoCo v3, BYOL, DINO)."""
    layer: Annotated[str, Field(pattern=LAYER_PATTERN)] = "backbone"
    """Which features: those of the `backbone`, of the whole `projector` (the embeddings), or of its layer N, `projector.N` from 0 on."""
    online: Literal["knn", "linear", "both"] = "knn"
    """Which scores on the validation images are computed during the run: `knn_top1`, `linear_top1` (a linear probe, which takes longer), or
    both. On the test images, in the last line, they are called `test_knn_top1` and `test_linear_top1`."""
    online_rows: int = Field(default=10_000, ge=100)
    """At most so many train, validation and test images are used by the run itself; `ray-sassl evaluate` uses all."""
    keep_gb: float = Field(default=4.0, ge=0)
    """A run keeps up to so many GB (10^9 bytes) of these train and validation images in memory, half of it for either: decoded if all
    fit, or else encoded; each of its workers keeps the share that it scores. So only the first scores of a run read them; 10,000 images of
    ImageNet have about 1.1 GB."""

    @property
    def view(self) -> EvaluationView:
        """How images are seen."""
        return EvaluationView(self.size_px, self.crop, self.interpolation)

    @property
    def own_validation(self) -> DataConfig | None:
        """The validation images, where they are not a share of the train images."""
        return self.validation if isinstance(self.validation, DataConfig) else None

    @model_validator(mode="after")
    def _validation_has_an_effect(self) -> Self:
        if self.train is None and self.own_validation is not None:
            raise ValueError("evaluate.validation has no effect without evaluate.train: nothing is scored during the run")
        return self


class PoolConfig(FrozenConfig):
    """The actor pool that runs the stylizer."""

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)
    initial: int | None = Field(default=None, ge=1)
    """Actors at the start, by default `min`. A pool grows slowly by itself, so set this if the size is known."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs of one actor; it uses as many threads, at least one."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of one actor; a share such as 0.25 is allowed."""
    node_group: str | None = None
    """Run only on nodes whose label `ray-sassl/group` has this value (set by the definitions in `cluster/`); by default on any node."""

    @model_validator(mode="after")
    def _sizes_in_order(self) -> PoolConfig:
        if not self.min <= (self.initial or self.min) <= self.max:
            raise ValueError(f"the pool needs min <= initial <= max, not {self.min}, {self.initial}, {self.max}")
        return self


class StreamConfig(FrozenConfig):
    """How shards become batches on Ray."""

    layout: Literal["auto", "fused", "pool"] = "auto"
    """`fused`: one stage of tasks reads, decodes, crops, stylizes and does the color operations. `pool`: tasks read, decode and crop;
    an actor pool stylizes and does the rest. `auto`: `pool` if the stylizer has a GPU (`stream.pool.num_gpus`), else `fused`."""
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs of one task. With 0.8 there are five tasks for four cores, and one may wait for an object store while the others decode."""
    initial_tasks: int = Field(default=1, ge=1)
    """Tasks for which a cluster that grows is asked at the start, together with the training workers and `pool.initial` stylizers, so that
    GPUs do not wait for nodes that come one after the other: as many as the nodes that `ray-sassl cluster plan` names have CPUs."""
    node_group: str | None = None
    """The group of nodes for the tasks, by the label `ray-sassl/group`; by default any node with free CPUs, also the training workers'."""
    prefetch_batches: int = Field(default=2, ge=0)
    """Batches that a training worker prefetches."""
    local_threads: int | None = Field(default=None, ge=1)
    """Threads that decode and make views with `scaling.num_workers=0`. By default as many as there are CPUs where a GPU trains, and 1 where
    the CPUs train themselves. It has no effect on the order or the bytes of the views, nor on Ray."""
    pool: PoolConfig = PoolConfig()


class ScalingConfig(FrozenConfig):
    """The training workers."""

    num_workers: int = Field(default=1, ge=0)
    """Ray Train workers. 0 runs everything in this process, without Ray, and decodes in `stream.local_threads` threads."""
    min_workers: int | None = Field(default=None, ge=1)
    """Makes the run elastic: if nodes are lost it continues with fewer workers, at least this many, and later with more, up to
    `num_workers`. The global batch stays the same, since each worker takes more parts of it. By default always `num_workers`."""
    resize_every_s: float = Field(default=60.0, gt=0)
    """How often an elastic run checks whether it could have more workers. It has no effect without `min_workers`."""
    use_gpu: bool | None = None
    """Whether each worker has a GPU; by default if the cluster has one for each."""
    cpus_per_worker: float = Field(default=1.0, gt=0)
    threads_per_worker: int | None = Field(default=None, ge=1)
    """Threads of a worker's CPU arithmetic; by default the node's CPUs divided among its workers."""
    node_group: str | None = None
    """Like `stream.pool.node_group`. It keeps the workers off nodes with small GPUs, which the autoscaler might prefer."""
    max_failures: int = Field(default=3, ge=-1)
    """How often workers are restarted from the last checkpoint after a crash or the loss of a node, without a newer checkpoint in between;
    -1 means always. A node that goes away with notice (such as a spot machine) does not count."""

    @property
    def is_elastic(self) -> bool:
        return self.min_workers is not None and self.min_workers < self.num_workers

    @property
    def worker_counts(self) -> range:
        """The possible numbers of workers."""
        return range(self.min_workers or self.num_workers, self.num_workers + 1)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> ScalingConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"scaling.min_workers={self.min_workers} is more than scaling.num_workers={self.num_workers}")
        return self


def _signal_name(value: object) -> object:
    """`usr1` and `USR1` are SIGUSR1."""
    return f"SIG{value.upper().removeprefix('SIG')}" if isinstance(value, str) else value


class FaultConfig(FrozenConfig):
    """What a run does when it is told to end, or stands still."""

    grace_s: float = Field(default=20.0, gt=0)
    """Seconds from a notice (SIGTERM, SIGHUP, `preempt_signal`) to the end of the run: it stops at the next step with a checkpoint, and
    at once after that time, with the checkpoints that are there. Kubernetes and SLURM kill what has not ended after 30 s."""
    preempt_signal: Annotated[Literal["SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGCONT"] | None, BeforeValidator(_signal_name)] = "SIGUSR1"
    """A further signal that is such a notice: SLURM's `--signal=B:USR1@60` sends it 60 s before the time is up. None: no signal."""
    stall_s: float = Field(default=60.0, gt=0)
    """A warning names the worker or stage that stands still, and where in the code, when no step came for so many seconds and for 20 times
    the usual step; before the first step, and during scores and checkpoints, for 10 times as long."""


class PixelsConfig(FrozenConfig):
    """How an encoder's images are normalized; see `TrainConfig`."""

    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


class EncoderConfig(FrozenConfig):
    """What an evaluation has to know of an encoder without a run, at the paths that it has in a run's config."""

    name: str
    seed: int = Field(default=0, ge=0)
    """Of the untrained encoder that it is compared with."""
    backbone: BackboneConfig
    train: PixelsConfig
    evaluate: EvaluateConfig = EvaluateConfig()


class ExperimentConfig(FrozenConfig):
    """The whole config of a run: equal configs on equal data give the same run."""

    name: Annotated[str, OPERATIONAL]
    seed: Annotated[int, SEED] = Field(default=0, ge=0)
    data: DataConfig
    views: ViewsConfig
    stylize: plugin_field(_STYLIZERS, StylizerConfig) = "identity"  # type: ignore[valid-type]
    """The style-transfer network of SASSL; `identity` switches style augmentation off."""
    sassl: SasslConfig = SasslConfig()
    backbone: BackboneConfig
    method: plugin_field(_METHODS, MethodConfig)  # type: ignore[valid-type]
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    evaluate: Annotated[EvaluateConfig, OPERATIONAL] = EvaluateConfig()
    stream: Annotated[StreamConfig, OPERATIONAL] = StreamConfig()
    scaling: Annotated[ScalingConfig, OPERATIONAL] = ScalingConfig()
    tracking: Annotated[TrackingConfig, OPERATIONAL] = TrackingConfig()
    fault: Annotated[FaultConfig, OPERATIONAL] = FaultConfig()

    @model_validator(mode="after")
    def _small_views_are_of_use(self) -> Self:
        assert isinstance(self.method, MethodConfig)
        if self.views.num_small and not self.method.takes_small_views:
            takers = [name for name in plugin_names(_METHODS) if load_plugin(_METHODS, name).Config.takes_small_views]
            raise ValueError(
                f"method={self.method.name} is defined for two views, and views.num_small={self.views.num_small} adds local crops; take a "
                f"recipe without them, such as views=simclr_224, or a method that takes them: {', '.join(takers)}"
            )
        if self.sassl.views == "small" and not self.views.num_small:
            raise ValueError("sassl.views='small' stylizes the local crops, and views.num_small=0 makes none; set one or the other")
        return self

    @model_validator(mode="after")
    def _stylized_views_are_large_enough(self) -> Self:
        assert isinstance(self.stylize, StylizerConfig)
        sizes_px = [size_px for number, size_px in enumerate(self.views.sizes_px) if self.sassl.stylizes(number)]
        if not self.stylize.is_identity and min(sizes_px) < self.stylize.min_px:
            takers = [name for name in plugin_names(_STYLIZERS) if load_plugin(_STYLIZERS, name).Config.min_px <= min(sizes_px)]
            raise ValueError(
                f"stylize={self.stylize.name} stylizes views of at least {self.stylize.min_px} px, not of {min(sizes_px)} px; take larger "
                f"views, leave the local crops out of sassl.views, or take a stylizer for them: {', '.join(takers)}"
            )
        return self

    @model_validator(mode="after")
    def _batches_are_large_enough(self) -> Self:
        assert isinstance(self.method, MethodConfig)
        counts = self.scaling.worker_counts if self.scaling.num_workers else range(1, 2)
        for count in counts:
            try:
                rows, parts = share_of_batch(self.train, counts[-1], count)
            except UsageError:  # the batch does not divide, for which launching has words of its own
                continue
            if reason := self.method.too_few_rows(rows, count):
                raise ValueError(
                    f"method={self.method.name} would learn nothing from train.global_batch={self.train.global_batch} in parts of {rows} "
                    f"(each of {count} workers takes its share in {parts}): {reason}; take a larger train.global_batch, or a smaller "
                    f"train.accumulate or scaling.num_workers"
                )
        return self


EvaluatedConfig = ExperimentConfig | EncoderConfig
"""The config of an encoder that is evaluated."""
