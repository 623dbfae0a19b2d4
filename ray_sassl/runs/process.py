"""The work of one training process, given a config, a context and a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import nn

from ray_sassl.backbones import build_backbone
from ray_sassl.backbones.weights import encoder_with
from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.online import online_scores
from ray_sassl.files import storage
from ray_sassl.methods import MethodConfig
from ray_sassl.methods.layers import network_of
from ray_sassl.nn.method import Method
from ray_sassl.pipeline import StylizeBlock, ViewSource
from ray_sassl.process.ending import lastly
from ray_sassl.runs.files import CONFIG, INDEX
from ray_sassl.runs.neighbors import draw_neighbors
from ray_sassl.runs.same_class import SameClass
from ray_sassl.runs.start import load_start
from ray_sassl.style.augment import StyleAugmentation
from ray_sassl.train.checkpoint import Checkpoint
from ray_sassl.train.context import Context
from ray_sassl.train.loop import Job, train
from ray_sassl.train.metrics import MetricsLog
from ray_sassl.types import Arrays, Outcome


def view_source(config: ExperimentConfig, run_dir: str) -> ViewSource:
    """Which views of which data the run trains on, with its cached index."""
    path = storage.join(run_dir, INDEX)
    entry = storage.stat(path)
    return ViewSource(path, config.data, config.views, config.seed, entry.mtime_ns if entry else 0)


def build_method(config: ExperimentConfig, run_dir: str | None = None) -> Method:
    """The method as the run starts it, the same on every rank: heads and encoder with weights initialized by the run's seed, unless the
    encoder starts from other weights.

    Args:
        run_dir: Where those weights are; without it the encoder's are random.
    """
    torch.manual_seed(config.seed)
    backbone, num_features = build_backbone(config.backbone)
    if run_dir is not None:
        load_start(config, run_dir, backbone)
    method_config = config.method
    assert isinstance(method_config, MethodConfig)
    return method_config.build(backbone, num_features)


def build_style_augmentation(config: ExperimentConfig, device_type: str, num_threads: int) -> StyleAugmentation | None:
    """Style augmentation as the config has it, or None if the stylizer is the identity.

    Args:
        device_type: `cpu` or `cuda`.
        num_threads: The number of CPU threads that torch may use in this process.
    """
    if config.stylize.is_identity:
        return None
    torch.set_num_threads(max(1, num_threads))
    device = torch.device(device_type)
    stylizer = config.stylize.build(device)
    return StyleAugmentation(stylizer, config.sassl, device, config.sassl.load_bank(stylizer.bundle_id))


def build_stylize_block(config: ExperimentConfig, device_type: str, num_threads: int) -> StylizeBlock | None:
    """`build_style_augmentation` for `pipeline.finish_block`."""
    augmentation = build_style_augmentation(config, device_type, num_threads)
    return augmentation.stylize if augmentation is not None else None


def train_process(
    config: ExperimentConfig,
    run_dir: str,
    batches: Iterator[Arrays],
    num_rows: int,
    context: Context,
    resume: Checkpoint | None,
    accumulate: int | None = None,
) -> Outcome:
    """Run this process's part of the training; rank 0 also keeps the record.

    Args:
        batches: This rank's stream.
        num_rows: Rows of the data set.
        resume: The checkpoint to continue from.
        accumulate: Parts of a batch, if there are more than the config says.
    """
    method = build_method(config, run_dir)
    evaluated = network_of(method, config.evaluate.network, config.evaluate.layer)
    record, validation, last = None, None, None
    if (scores := online_scores(config, context)) is not None:
        validation, last = (lambda _, check: scores.validation(evaluated, check)), (lambda _, check: scores.test(evaluated, check))
    if context.rank == 0:
        if scores is None and config.evaluate.final_test:
            last = _neighbors(config, run_dir, evaluated, context.device)
        step = resume.step if resume else 0
        record = MetricsLog(run_dir, config.tracking, config.model_dump(mode="json"), resume_step=step)
    with lastly("write the metrics", record.close) if record is not None else nullcontext():
        return train(
            Job(
                method=method,
                batches=batches,
                config=config.train,
                optim=config.optim,
                num_rows=num_rows,
                seed=config.seed,
                run_dir=run_dir,
                config_yaml=to_yaml(config),
                context=context,
                resume=resume,
                evaluate=validation,
                final_test=last,
                record=record,
                same_class=SameClass(config, view_source(config, run_dir)) if context.rank == 0 else None,
                extra_state={"num_rows": num_rows},
                accumulate=accumulate,
                stall_s=config.fault.stall_s,
            )
        )


def load_network(checkpoint: Checkpoint, config: ExperimentConfig) -> nn.Module:
    """The network of the checkpoint that `evaluate.network` and `evaluate.layer` of the run's config, or of a changed one, name.

    Raises:
        UsageError: the method does not have it.
    """
    if config.evaluate.network == "student" and config.evaluate.layer == "backbone":
        return encoder_with(config.backbone, checkpoint.backbone)[0]
    method = build_method(config)
    checkpoint.load_method(method)
    network = network_of(method, config.evaluate.network, config.evaluate.layer)
    if config.evaluate.layer == "backbone":  # as a new encoder, without the layers that synchronize or split batches
        return encoder_with(config.backbone, network.state_dict())[0]
    return network.requires_grad_(True).eval()


def _neighbors(
    config: ExperimentConfig, run_dir: str, network: nn.Module, device: torch.device
) -> Callable[[nn.Module, Callable[[], None]], dict[str, float]]:
    """What is done with the network at the end of a run without labels; it gives no scores."""

    def draw(_: nn.Module, check: Callable[[], None]) -> dict[str, float]:
        draw_neighbors(config, view_source(config, run_dir).index, run_dir, network, device, check)
        return {}

    return draw


def load_backbone(checkpoint: Checkpoint) -> tuple[ExperimentConfig, nn.Module]:
    """The config of the checkpoint's run, and its encoder."""
    config = from_yaml(checkpoint.config_yaml, source=f"{checkpoint.path}/{CONFIG}")
    return config, encoder_with(config.backbone, checkpoint.backbone)[0]
