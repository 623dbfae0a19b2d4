"""Ablations from Python: `ablation`, `list_ablations`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.protocols.robustness import Config as Robustness
from ray_sassl.evaluation.protocols.robustness import unused_stylizer
from ray_sassl.evaluation.run import protocol_configs
from ray_sassl.experiments.ablations import Ablation, ablations, load_ablation
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides
from ray_sassl.study.ablation import arm_configs, plan_ablation, write_ablation
from ray_sassl.study.ablation_table import AblationTable, read_table, write_table
from ray_sassl.study.record import STUDY

if TYPE_CHECKING:
    from ray_sassl.orchestrate.tune.search import StudyState


@dataclass(frozen=True)
class AblationResult:
    """The state of an ablation.

    Attributes:
        table: Scores of each arm, and its differences from the arms that it is compared with.
        study_dir: The directory with the runs and the table.
        paths: The table as a page, a document and JSON.
        is_interrupted: Whether it was stopped before its end; the same call continues it.
        stopped_by: The signal that stopped it, such as "SIGTERM", or None.
    """

    table: AblationTable
    study_dir: str
    paths: list[str]
    is_interrupted: bool = False
    stopped_by: str | None = None


def ablation(
    name: str | os.PathLike[str] | Ablation,
    study_dir: str | None = None,
    *,
    seeds: int = 5,
    size: str = "cpu",
    experiment: ExperimentConfig | str | None = None,
    overrides: Overrides = None,
    protocols: Sequence[str | ProtocolConfig] = (),
    max_concurrent: int | None = None,
    retries: int = 1,
    strict: bool = False,
    address: str | None = None,
    watch: Callable[[StudyState], None] = lambda state: None,
    announce: Callable[[str], object] = lambda run_dir: None,
) -> AblationResult:
    """Train and evaluate every arm of a table with several seeds on Ray, and write the table with paired intervals.

    The same call continues an ablation that was stopped: finished runs are kept, failed ones are tried again, and with more seeds the
    others are added. Nothing is chosen by the test images, which only give the final scores.

    Args:
        name: A table's name, or a `.py` file.
        study_dir: Local path or URI. By default `ablations/NAME`.
        seeds: Runs of each arm.
        size: "cpu" (CIFAR-10 on two cores), "gpu" (CIFAR-10 on one GPU), "imagenet100" or "imagenet".
        experiment: Another base experiment than the size's: a config, a name, a YAML file or a run directory.
        overrides: Changes to the experiments of all arms.
        protocols: What encoders are evaluated by: names, or configs for other settings; by default the table's.
        max_concurrent: Runs at once; by default as many as the cluster has room for.
        retries: How often a failed run is restarted from its checkpoint.
        strict: Refuse data of which anything is left out, instead of saying so.
        address: Address of a running Ray cluster, as for `pretrain`.
        watch: Called several times a second with the state of the study.
        announce: Called with each run directory that is evaluated after the training of all.

    Raises:
        FolderInUseError: another command is at work in the study directory.
        UsageError: the table, size, experiment, directory or cluster do not allow it.
    """
    from ray_sassl.orchestrate.ablation import run_arms

    source = name if isinstance(name, Ablation) else load_ablation(os.fspath(name))
    configs = protocol_configs(protocols or source.protocols)
    place = study_dir or f"ablations/{source.name}"
    with hold_folder(place, "ablation"):
        begun = storage.exists(storage.join(place, STUDY))
        table, study = plan_ablation(
            source,
            seeds=seeds,
            size=size,
            experiment=experiment,
            overrides=overrides,
            strict=strict,
            begun=place if begun else None,
            max_concurrent=max_concurrent,
            retries=retries,
        )
        if study.base.evaluate.train is None or study.base.evaluate.test is None:
            raise UsageError(
                "a table compares scores on test images: set evaluate.train and evaluate.test, as in 'evaluate.test={path: FOLDER}'"
            )
        configs = [_same_for_all(config, arm_configs(study)) for config in configs]
        try:
            state = run_arms(study, place, configs, resume=begun, address=address, watch=watch, announce=announce)
        finally:
            if storage.exists(storage.join(place, STUDY)):
                write_ablation(table, place)
        found = read_table(place, [config.name for config in configs])
        paths = write_table(found)
    is_interrupted = any(trial.state == "interrupted" for trial in state.records) or len(state.records) < study.num_trials
    return AblationResult(found, place, paths, is_interrupted, state.stopped_by)


def _same_for_all(protocol: ProtocolConfig, arms: Mapping[str, ExperimentConfig]) -> ProtocolConfig:
    """Robustness with one stylizer for all arms, which none was trained with; each arm would be judged by another one else."""
    if not isinstance(protocol, Robustness) or protocol.stylize is not None:
        return protocol
    return protocol.model_copy(update={"stylize": unused_stylizer(*(config.stylize.name for config in arms.values()))})


def list_ablations() -> dict[str, Ablation]:
    """The tables by name."""
    return ablations()
