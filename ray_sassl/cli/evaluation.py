"""`ray-sassl evaluate` and `detect`: scores of an encoder."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

import ray_sassl
from ray_sassl.cli.data import Address, Backbone, Strict, resumable
from ray_sassl.process.console import open_console
from ray_sassl.process.errors import UsageError

app = typer.Typer()

EncoderName = Annotated[
    str,
    typer.Argument(
        metavar="ENCODER",
        help="A run directory (its newest checkpoint), a checkpoint, an export, a file of weights, timm:NAME, torchvision:NAME.",
    ),
]
Out = Annotated[
    str | None, typer.Option(help="Folder for the results. [default: evaluation/step-NUMBER of a run, evaluations/NAME for other encoders]")
]


@app.command(
    epilog="Examples: ray-sassl evaluate runs/first knn linear linear.l2=grid --baselines   |   ray-sassl evaluate timm:resnet50 all"
)
def evaluate(
    run: EncoderName,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="PROTOCOL... [PATH=VALUE]...",
            help="Protocols, or `all` for those whose images are available, and changes to their fields (k=20, knn.k=20) or to the run's "
            "config (evaluate.test.path=...). The message about an unknown name lists the known ones.",
        ),
    ],
    baselines: Annotated[bool, typer.Option("--baselines", help="Also score the untrained encoder and raw pixels.")] = False,
    backbone: Backbone = None,
    strict: Strict = False,
    out: Out = None,
    keep_features: Annotated[
        bool, typer.Option(help="Save features in evaluation/features of the run directory, and use those that were saved.")
    ] = True,
    actors: Annotated[
        int | None,
        typer.Option(min=1, help="Number of actors. [default: on a cluster as many as fit; on one machine, this process does the work]"),
    ] = None,
    actor_cpus: Annotated[float, typer.Option(help="CPUs and threads per actor.")] = 1.0,
    actor_gpus: Annotated[float | None, typer.Option(help="GPUs per actor. [default: 1 if the cluster has GPUs]")] = None,
    address: Address = None,
) -> None:
    """Evaluate an encoder on labeled images, beside the one that its run has started from.

    Writes scores with confidence intervals, pictures and predictions. Features are computed once.
    """
    from ray_sassl.cli.event_log import event_log
    from ray_sassl.cli.protocol_words import ALL, DETECT, parse_protocols, split_detection, with_all_named
    from ray_sassl.cli.tables import scores_table
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.evaluation.detection import DetectConfig
    from ray_sassl.experiments import data_root
    from ray_sassl.orchestrate.batch.evaluate import voc_folder
    from ray_sassl.orchestrate.runtime.progress import progress_bar

    console, wants_all = open_console(), ALL in what
    words, boxes, settings = split_detection(what)
    if wants_all:
        boxes = boxes or voc_folder()
    no_boxes = f"there is no VOCdevkit in {data_root()}"
    if settings and boxes is None:
        raise UsageError(f"{DETECT}.{settings[0]} has no effect: {no_boxes}, and detect.data=FOLDER is not given")
    protocols, changes = parse_protocols(with_all_named(words))
    detection = apply_overrides(DetectConfig(), settings)
    with resumable(console, out or run):
        result = ray_sassl.evaluate(
            run,
            protocols,
            overrides=changes,
            skip_absent=wants_all,
            detect_on=boxes,
            detection=detection,
            progress=progress_bar,
            watch=event_log(console, detection),
            baselines=baselines,
            backbone=backbone,
            strict=strict,
            out=out,
            keep_features=keep_features,
            actors=actors,
            actor_cpus=actor_cpus,
            actor_gpus=actor_gpus,
            address=address,
        )
    if wants_all:
        console.print(scores_table("all protocols", result.evaluations))
        if boxes is None:
            result.skipped[DETECT] = f"{no_boxes}; detect.data=FOLDER names another data set in VOC's form"
    for name, reason in result.skipped.items():
        console.print(Text.assemble((f"{name} was left out:", "dim"), f" {reason}"), soft_wrap=True)
    for name, reason in result.failures.items():
        console.print(Text.assemble((f"{name} failed:", "bold red"), f" {reason}"), soft_wrap=True)
    if result.num_bad:
        console.print(f"{result.num_bad:,} images could not be decoded and were left out", style="yellow")
    if result.failures:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: ray-sassl detect runs/first VOCdevkit   |   ray-sassl detect runs/first cells architecture=fpn steps=500 batch_size=4"
)
def detect(
    run: EncoderName,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A folder with JPEGImages, Annotations and ImageSets/Main, or with VOC2007 and VOC2012 in it."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[PATH=VALUE]...", help="Changes to the settings, such as steps=500.")
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Also fine-tune the untrained encoder.")] = False,
    backbone: Backbone = None,
    strict: Strict = False,
    out: Out = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of Ray workers; 0: train in this process. [default: one per GPU of a cluster or of several GPUs; else 0]"
        ),
    ] = None,
    worker_cpus: Annotated[float, typer.Option(help="CPUs and threads per worker.")] = 1.0,
    address: Address = None,
) -> None:
    """Evaluate an encoder by object detection.

    Trains Faster R-CNN with the encoder as its backbone on data in PASCAL VOC's form, and measures AP, AP50, AP75. The same command
    continues a run that was stopped.
    """
    from ray_sassl.cli.event_log import event_log
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.evaluation.detection import DetectConfig

    console, settings = open_console(), apply_overrides(DetectConfig(), overrides or [])
    how = {"baselines": baselines, "backbone": backbone, "strict": strict, "out": out, "workers": workers, "worker_cpus": worker_cpus}
    with resumable(console, out or run):
        result = ray_sassl.detect(run, data, settings, **how, address=address, watch=event_log(console, settings))
    if result.num_bad:
        console.print(f"{result.num_bad:,} images could not be decoded and were left out", style="yellow")
