"""The arms of an ablation: each run is trained and evaluated as a trial of a study; see `study.ablation`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.run import without_scores
from ray_sassl.files.paths import with_absolute_paths
from ray_sassl.orchestrate.batch.evaluate import evaluate
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.tune.search import StudyState, Watch, search
from ray_sassl.study.record import StudyConfig, open_study, read_trials, trial_dir, write_trial
from ray_sassl.types import RunResult

Announce = Callable[[str], object]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that is evaluated in the same process when it has ended, if it was trained there; else nobody would wait for its GPUs.

    Attributes:
        protocols: What the encoder is evaluated by.
        pretrain: Trains it; simulations replace it.
    """

    protocols: tuple[ProtocolConfig, ...]
    pretrain: Callable[..., RunResult] = pretrain

    def __call__(self, config: ExperimentConfig, run_dir: str, **how: Any) -> RunResult:
        result = self.pretrain(config, run_dir, **how)
        if result.status == "finished" and config.scaling.num_workers == 0:
            evaluate_missing(run_dir, self.protocols, actors=0)
        return result


def evaluate_missing(run_dir: str, protocols: Sequence[ProtocolConfig], **how: Any) -> None:
    """Evaluate the run by the protocols that it has no scores of.

    Raises:
        UsageError: a protocol cannot evaluate it.
    """
    for protocol in without_scores(protocols, run_dir):
        evaluate(run_dir, [protocol], **how)


def run_arms(
    study: StudyConfig,
    study_dir: str,
    protocols: Sequence[ProtocolConfig],
    *,
    resume: bool,
    address: str | None = None,
    watch: Watch = lambda state: None,
    announce: Announce = lambda run_dir: None,
) -> StudyState:
    """Train and evaluate all arms with all seeds. Runs that are finished are kept, and failed ones are tried again.

    Args:
        resume: Whether the study is in the directory.
        announce: Called with a run that is evaluated after all are trained, since its workers were not in the trial's process.

    Raises:
        UsageError: the data, the directory or the cluster do not allow it.
    """
    records = read_trials(study_dir) if resume else []
    for record in records:
        if record.state == "failed":
            write_trial(study_dir, replace(record, state="interrupted"))
    if len(records) < study.num_trials or any(record.state != "finished" for record in records):
        state = search(study, study_dir, resume=resume, address=address, watch=watch, run=EvaluatedRun(tuple(protocols)))
    else:
        study = study.model_copy(update={"base": with_absolute_paths(study.base)})
        open_study(study, study_dir, resume=True)
        state = StudyState(study, study_dir, {record.number: record for record in records})
    for record in state.records if not state.is_stopping else ():
        run_dir = trial_dir(state.study_dir, record.number)
        if record.state == "finished" and without_scores(protocols, run_dir):
            announce(run_dir)
            evaluate_missing(run_dir, protocols, address=address)
    return state
