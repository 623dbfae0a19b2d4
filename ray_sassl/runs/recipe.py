"""The config of a run on a user's own images, chosen for the images and the machine, with the reason for each choice.

This is what `ray-sassl pretrain photos/` trains. The objective's widths and the optimizer are those of the objective's CIFAR-10
experiments (`ray_sassl.experiments.cifar10`); the views are those of its paper (`MethodConfig.paper_views`) at the chosen size.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ray_sassl.backbones import BackboneConfig
from ray_sassl.backbones.weights import Source
from ray_sassl.config.overrides import Override, apply_overrides, path_of, value_of
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig, ScalingConfig
from ray_sassl.data import NO_LABEL, SYNTHETIC, DataConfig
from ray_sassl.data.hub import hub_name, is_hub
from ray_sassl.data.index import Index
from ray_sassl.data.inspect import Summary, inspect, sample_rows
from ray_sassl.data.reading import build_index
from ray_sassl.experiments import experiments, load_experiment
from ray_sassl.files import storage
from ray_sassl.methods import MethodConfig
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.start import find_source
from ray_sassl.style.stylizers.swift import Config as Swift
from ray_sassl.train.config import TrainConfig
from ray_sassl.views.recipes import SMALL_FORM_MAX_PX, recipe_named

MIN_IMAGES = 64
SIZES_PX = (32, 64, 96, 128, 224)
_FEW_IMAGES = 5_000
_MANY_IMAGES = 50_000
_GPU_STEPS = (10_000, 200_000)
_CPU_STEPS = (300, 1_500)
_GPU_EPOCHS, _CPU_EPOCHS = 200, 20
_LARGEST_CPU_PX = 64
_START_RATE, _START_WARMUP = 0.1, 0.1
_BYTES_OF_IMAGE = {"resnet18": 45e6, "resnet50": 180e6}
"""Memory for training on two views of 224 px of one image in float32: the sizes of all layers' outputs, kept once for the backward pass."""


@dataclass(frozen=True)
class Machine:
    """The machine that a run can use.

    Attributes:
        num_gpus: GPUs of this machine, or of the cluster.
        gpu_bytes: Memory of the smallest GPU.
        has_bfloat16: Whether the GPUs multiply in bfloat16.
    """

    num_gpus: int = 0
    gpu_bytes: int = 0
    has_bfloat16: bool = False

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        count = torch.cuda.device_count()
        if not count:
            return cls()
        memory = min(torch.cuda.get_device_properties(number).total_memory for number in range(count))
        return cls(count, memory, torch.cuda.is_bf16_supported())


@dataclass(frozen=True)
class Choice:
    """One line of a recipe.

    Attributes:
        what: The setting that was chosen, in words.
        value: The choice.
        reason: Why.
        change: The override that changes it.
    """

    what: str
    value: str
    reason: str
    change: str


@dataclass(frozen=True)
class Recipe:
    """A run's config and how it was chosen.

    Attributes:
        config: The config with the user's overrides applied.
        choices: The choices before the overrides.
        notes: Notes for the user about these images.
        index: The index of the images.
    """

    config: ExperimentConfig
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    index: Index


def is_data(name: str) -> bool:
    """Whether the first argument of a verb names images, and not an experiment, a YAML file or a run directory.

    A name without a slash that is an experiment's name means the experiment; `./NAME` means the folder.
    """
    if name.endswith((".yaml", ".yml")):
        return False
    if name in SYNTHETIC or is_hub(name) or "://" in name or any(sign in name for sign in "*?[{"):
        return True
    return name not in experiments() and os.path.exists(os.path.expanduser(name))


def run_name(path: str) -> str:
    """The name of a run on these images: the last part of the path that is not a pattern."""
    path = hub_name(path).name if is_hub(path) else path
    parts = [part for part in storage.without_options(path).rstrip("/").split("/") if part and not set(part) & set("*?[{")]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1].rpartition(":")[2] if parts else "").strip("-.")
    return name or "images"


def choose_recipe(data: str | DataConfig, overrides: Sequence[Override] = (), machine: Machine | None = None) -> Recipe:
    """The config for these images on this machine.

    Args:
        data: A path as in `data.path`, or the data's config.
        overrides: Changes by the user. Those of `data` and `method` are applied before anything is chosen, the others at the end.
        machine: The machine that the run can use; by default this one.

    Raises:
        UsageError: there are no images, too few to train on, or they are all the same.
    """
    overrides = list(overrides)
    method_name, overrides = _method(overrides)
    if method_name + "_cifar10_cpu" not in experiments():
        apply_overrides(load_experiment("demo"), [("method", method_name)])  # names the nearest objective
    base = load_experiment(f"{method_name}_cifar10_cpu")
    base = base.model_copy(update={"data": data if isinstance(data, DataConfig) else DataConfig(path=data)})
    config_of_data = apply_overrides(base, [override for override in overrides if path_of(override).partition(".")[0] == "data"]).data
    index = build_index(config_of_data)
    summary = inspect(index)
    _check_images(index, summary)
    weights = next((value_of(override) for override in overrides if path_of(override) == "backbone.weights"), None)
    source = find_source(weights) if isinstance(weights, str) else None
    config, choices = _chosen(method_name, base, config_of_data, summary, machine or Machine.here(), source)
    if source is not None:
        config, rate = _starting_from(config, source)
        choices = tuple(rate if choice.what == rate.what else choice for choice in choices)
    return Recipe(apply_overrides(config, overrides), choices, _notes(summary), index)


def _starting_from(config: ExperimentConfig, source: Source) -> tuple[ExperimentConfig, Choice]:
    """The config with the colors of the weights that the run starts from, and a lower rate, which does not undo them in the first steps."""
    train = config.train
    if source.pixel_mean is not None and source.pixel_std is not None:
        train = train.model_copy(update={"pixel_mean": source.pixel_mean, "pixel_std": source.pixel_std})
    optim = config.optim.model_copy(
        update={"base_lr": config.optim.base_lr * _START_RATE, "warmup_epochs": round(train.epochs * _START_WARMUP, 2)}
    )
    rate = optim.base_lr * train.global_batch / 256
    choice = Choice("learning rate", f"{rate:.3g}", "a tenth, to keep what the weights know", f"optim.base_lr={config.optim.base_lr:g}")
    return config.model_copy(update={"train": train, "optim": optim}), choice


def _method(overrides: list[Override]) -> tuple[str, list[Override]]:
    """The name of the objective, and the overrides without the ones that choose it by name."""
    names = [value_of(override) for override in overrides if path_of(override) == "method"]
    if names and not all(isinstance(name, str) for name in names):
        raise UsageError("`method` takes the name of an objective here; change its fields by `method.FIELD=value`")
    return (str(names[-1]) if names else "simclr"), [override for override in overrides if path_of(override) != "method"]


def _check_images(index: Index, summary: Summary) -> None:
    place = ", ".join(index.config.paths)
    if summary.num_rows < MIN_IMAGES:
        raise UsageError(
            f"{place} has {summary.num_rows} images, and pretraining needs at least {MIN_IMAGES}: a batch must have different images to "
            "compare. Add images, or start from the encoder of another run."
        )
    if summary.width_px is None:
        raise UsageError(f"none of {summary.num_sampled} images in {place} can be read; `ray-sassl data check {place}` says why")
    rows = sample_rows(index, MIN_IMAGES)
    contents = {hashlib.sha256(row).digest() for row in rows.encoded if isinstance(row, bytes)}
    if len(contents) == 1:
        raise UsageError(f"all of {len(rows)} images tried in {place} are the same file; there is nothing to learn from their differences")


def _chosen(
    method_name: str, base: ExperimentConfig, data: DataConfig, summary: Summary, machine: Machine, source: Source | None
) -> tuple[ExperimentConfig, tuple[Choice, ...]]:
    rows = summary.num_rows
    has_gpu = machine.num_gpus > 0
    size_px, size = _size(summary, has_gpu, source)
    backbone, network = _backbone(size_px, rows, has_gpu, source)
    precision = "bfloat16" if machine.has_bfloat16 else "float32"
    batch, batch_line = _batch(rows, size_px, backbone.name, machine, precision)
    epochs, length = _epochs(rows, batch, has_gpu)
    steps = int(epochs * rows / batch)
    labels, label_line = _labels(data, summary)
    method: MethodConfig = base.method
    views = recipe_named(method.paper_views, size_px)
    if not has_gpu and views.num_small:
        views = views.model_copy(update={"num_small": min(2, views.num_small)})
    config = ExperimentConfig(
        name=run_name(data.paths[0]),
        data=data,
        views=views,
        stylize=Swift(),
        backbone=backbone,
        method=method,
        train=TrainConfig(
            epochs=epochs,
            global_batch=batch,
            precision=precision,
            log_every=max(1, min(20, steps // 100)),
            checkpoint_every=max(1, min(1000, steps // 10)),
            evaluate_every=max(1, steps // 10),
        ),
        optim=base.optim.model_copy(update={"warmup_epochs": round(min(10.0, epochs / 20), 2)}),
        evaluate=EvaluateConfig(train=labels, size_px=size_px),
        scaling=ScalingConfig(num_workers=machine.num_gpus),
    )
    rate = config.optim.base_lr * batch / 256
    form = "without blur, for small images" if size_px <= SMALL_FORM_MAX_PX else "as for photographs"
    choices = (
        size,
        Choice("objective", method_name, "works without a momentum network" if method_name == "simclr" else "given", "method=moco"),
        Choice("views", f"{method.paper_views} at {size_px} px", f"the objective's own, {form}", "views=byol_224"),
        Choice("style", "swift", "the stylizer that is part of the package", "stylize=identity"),
        network,
        batch_line,
        length,
        Choice("learning rate", f"{rate:.3g}", f"{config.optim.base_lr:g} x batch / 256, as in {base.name}", "optim.base_lr=0.06"),
        Choice(
            "precision",
            precision,
            "the GPU has it" if machine.has_bfloat16 else "no GPU that multiplies in bfloat16",
            f"train.precision={'float32' if machine.has_bfloat16 else 'bfloat16'}",
        ),
        Choice("workers", str(machine.num_gpus), _workers_reason(machine.num_gpus), "scaling.num_workers=1"),
        label_line,
    )
    return config, choices


def _size(summary: Summary, has_gpu: bool, source: Source | None) -> tuple[int, Choice]:
    assert summary.width_px is not None
    assert summary.height_px is not None
    shorter = min(summary.width_px.median, summary.height_px.median)
    size_px = max([SIZES_PX[0], *(size for size in SIZES_PX if size <= shorter)])
    reason = f"the median image has {summary.width_px.median} x {summary.height_px.median} px"
    if source is not None and source.size_px is not None:
        size_px, reason = max(SIZES_PX[0], source.size_px), f"that of {source.name}"
    if not has_gpu and size_px > _LARGEST_CPU_PX:
        size_px, reason = _LARGEST_CPU_PX, f"{reason}; larger views take too long without a GPU"
    return size_px, Choice("image size", f"{size_px} px", reason, "views.size_px=96")


def _backbone(size_px: int, rows: int, has_gpu: bool, source: Source | None) -> tuple[BackboneConfig, Choice]:
    if source is not None and source.backbone is not None:
        plain = source.backbone.model_copy(update={"weights": None, "freeze": "none"})
        return plain, Choice("encoder", plain.name, f"the one of {source.name}", "backbone.weights=null")
    if size_px <= SIZES_PX[0] and has_gpu:
        name, stem, reason = "resnet18", "cifar", "the usual one for small images"
    elif size_px <= SIZES_PX[0]:
        name, stem, reason = "resnet20", "imagenet", "for small images, and quick on CPUs"
    elif has_gpu and size_px == SIZES_PX[-1] and rows >= _MANY_IMAGES:
        name, stem, reason = "resnet50", "imagenet", f"at least {_MANY_IMAGES:,} photographs"
    else:
        name, stem, reason = "resnet18", "imagenet", "small, and timm and torchvision load it"
    shown = f"{name}, stem {stem}" if stem == "cifar" else name
    return BackboneConfig(name=name, stem=stem), Choice("encoder", shown, reason, "backbone.name=resnet50")


def _batch(rows: int, size_px: int, backbone: str, machine: Machine, precision: str) -> tuple[int, Choice]:
    """A power of two, at most half of the images, so that an epoch has at least two steps."""
    if machine.num_gpus:
        each = (
            _BYTES_OF_IMAGE.get(backbone.rpartition("/")[2], max(_BYTES_OF_IMAGE.values()))
            * (size_px / 224) ** 2
            * (0.6 if precision == "bfloat16" else 1)
        )
        fits = _power_below(min(256, 0.7 * machine.gpu_bytes / each)) * machine.num_gpus
        largest, reason = min(fits, 1024), f"what {machine.num_gpus} GPU memories hold, at most 1,024"
    else:
        largest, reason = (128 if size_px <= SIZES_PX[0] else 64), "small, for a CPU"
    batch = min(largest, _power_below(rows / 2))
    if batch < largest:
        reason = f"at most half of {rows:,} images"
    return batch, Choice("batch", str(batch), reason, "train.global_batch=128")


def _power_below(value: float) -> int:
    return 1 << max(3, int(value).bit_length() - 1)


def _epochs(rows: int, batch: int, has_gpu: bool) -> tuple[float, Choice]:
    """So many epochs, within bounds on the steps."""
    usual, (least, most) = (_GPU_EPOCHS, _GPU_STEPS) if has_gpu else (_CPU_EPOCHS, _CPU_STEPS)
    steps = min(most, max(least, usual * rows / batch))
    epochs = max(1.0, round(steps * batch / rows, 1 if steps * batch / rows < 20 else None))
    reason = f"{int(epochs * rows / batch):,} steps: {usual} epochs, but between {least:,} and {most:,} steps"
    return epochs, Choice("length", f"{epochs:g} epochs", f"{reason}{'' if has_gpu else ', without a GPU'}", "train.epochs=50")


def _labels(data: DataConfig, summary: Summary) -> tuple[DataConfig | None, Choice]:
    """The data as labeled images, if enough of them have one of a few labels."""
    counts = {label: count for label, count in summary.labels.items() if label != NO_LABEL}
    if len(counts) >= 2 and sum(counts.values()) >= 8 * len(counts):
        share = EvaluateConfig().validation
        reason = f"{len(counts)} classes; {share:.0%} of each are held out of the neighbors and measured"
        return data, Choice("scores", "kNN top-1", reason, "evaluate.online=linear")
    reason = "no classes to measure by" if len(counts) < 2 else f"{len(counts)} labels of {sum(counts.values())} images are too many"
    return None, Choice("scores", "effective rank", reason, "evaluate.train={path: labeled/}")


def _workers_reason(num_gpus: int) -> str:
    return "one for each GPU" if num_gpus else "no GPU: the run stays in this process, without Ray"


def _notes(summary: Summary) -> tuple[str, ...]:
    notes = []
    if summary.num_rows < _FEW_IMAGES:
        notes.append(
            f"{summary.num_rows:,} images are few. An encoder learns colors, textures and layouts from them, and rarely more than one "
            "pretrained on a large public data set. Compare it with the untrained encoder: `ray-sassl evaluate RUN knn --baselines`."
        )
    if summary.bad_rows:
        notes.append(f"{len(summary.bad_rows)} of {summary.num_sampled} images tried cannot be read; `ray-sassl data check` lists them.")
    return tuple(notes)
