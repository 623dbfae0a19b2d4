"""The functions that `import ray_sassl` offers, by subject; the command line calls the same ones.

Each takes plain values (paths, names, numbers), connects to Ray where it needs a cluster, and returns a typed result. None of them prints
results or needs the main thread. Each is imported when it is first used, since torch and Ray take seconds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_sassl.api.ablations import ablation, list_ablations
    from ray_sassl.api.cluster import check_cluster, plan_cluster
    from ray_sassl.api.configs import load_config
    from ray_sassl.api.data import check_data, convert_data, fetch_dataset, inspect_data, list_datasets, measure_mixing
    from ray_sassl.api.encoders import embed, export, load_encoder
    from ray_sassl.api.evaluation import detect, evaluate
    from ray_sassl.api.experiments import list_experiments
    from ray_sassl.api.jobs import job_logs, job_status, list_jobs, stop_job, wait_for_job
    from ray_sassl.api.pages import compare, report
    from ray_sassl.api.pretraining import plan_run, pretrain, run_demo
    from ray_sassl.api.search import compare_studies, list_spaces, report_study, search
    from ray_sassl.api.style import build_style_bank, distill_stylizer, preview_styles, stylize_dataset
    from ray_sassl.api.views import draw_views
    from ray_sassl.api.weights import add_weights, fetch_weights, list_weights, verify_weights, weights_path

_MODULES = {
    "ablations": ("ablation", "list_ablations"),
    "cluster": ("check_cluster", "plan_cluster"),
    "configs": ("load_config",),
    "data": ("check_data", "convert_data", "fetch_dataset", "inspect_data", "list_datasets", "measure_mixing"),
    "encoders": ("embed", "export", "load_encoder"),
    "evaluation": ("detect", "evaluate"),
    "experiments": ("list_experiments",),
    "jobs": ("job_logs", "job_status", "list_jobs", "stop_job", "wait_for_job"),
    "pages": ("compare", "report"),
    "pretraining": ("plan_run", "pretrain", "run_demo"),
    "search": ("compare_studies", "list_spaces", "report_study", "search"),
    "style": ("build_style_bank", "distill_stylizer", "preview_styles", "stylize_dataset"),
    "views": ("draw_views",),
    "weights": ("add_weights", "fetch_weights", "list_weights", "verify_weights", "weights_path"),
}
HOMES = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
"""The module of each function."""

__all__ = [
    "ablation",
    "add_weights",
    "build_style_bank",
    "check_cluster",
    "check_data",
    "compare",
    "compare_studies",
    "convert_data",
    "detect",
    "distill_stylizer",
    "draw_views",
    "embed",
    "evaluate",
    "export",
    "fetch_dataset",
    "fetch_weights",
    "inspect_data",
    "job_logs",
    "job_status",
    "list_ablations",
    "list_datasets",
    "list_experiments",
    "list_jobs",
    "list_spaces",
    "list_weights",
    "load_config",
    "load_encoder",
    "measure_mixing",
    "plan_cluster",
    "plan_run",
    "pretrain",
    "preview_styles",
    "report",
    "report_study",
    "run_demo",
    "search",
    "stop_job",
    "stylize_dataset",
    "verify_weights",
    "wait_for_job",
    "weights_path",
]


def lazily(homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that hands on these names, each from its module, once they are used."""

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module 'ray_sassl' has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return look_up, lambda: sorted(homes)


__getattr__, __dir__ = lazily(HOMES)
