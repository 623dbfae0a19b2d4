"""What evaluating an encoder costs: features beyond the encoder's bare forward pass, and the search for neighbors.

    python -m benchmarks.evaluation [--data ../shared/data] [--num-images 128] [--rounds 3] [--backbone resnet50] [--num-threads 1] [--out
    FILE]

*Whole* is what one process does for a portion of a data set: read the Parquet rows, decode, resize, crop, normalize, encode, hand the
features back. *Decoding* is the same without the encoder, measured by itself: reading, decoding and the evaluation view. *Bare* is the
encoder alone, in channels_last layout, on batches of 64 float images that are there already. All are CPU-seconds of the process with its
threads; the three take turns, and ratios are medians over the rounds of (whole - decoding) / bare. Goal: 1.1.

*kNN* is `knn_votes` with k = 200: 10,000 queries against 50,000 train features of 512 numbers. Goal: 10 CPU-seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.extraction import BATCH_SIZE, ExtractionJob, Extractor, KeptImages, Preprocessing
from ray_sassl.evaluation.features import evaluation_mode
from ray_sassl.evaluation.protocols.knn import knn_votes
from ray_sassl.views.center_crop import EvaluationView

SIZE_PX = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONES = ("resnet18", "resnet50")
EXTRACTION_GOAL, KNN_GOAL_S = 1.1, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--num-images", type=int, default=128, help="at least so many: whole row groups are read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", action="append", help="only this one; may be repeated")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    backbones = args.backbone or BACKBONES
    features = {name: measure_extraction(args.data, name, args.num_images, args.rounds, args.num_threads) for name in backbones}
    knn = measure_knn(args.rounds)
    goals = [
        Goal(f"{name}: features over the bare forward pass", figures["ratio"], "at most", EXTRACTION_GOAL)
        for name, figures in features.items()
    ]
    goals.append(Goal("kNN of 10,000 queries against 50,000 x 512, CPU-s", knn["cpu_s"], "at most", KNN_GOAL_S))
    details = {
        "threads": args.num_threads,
        "rounds": args.rounds,
        "size_px": SIZE_PX,
        "batch_size": BATCH_SIZE,
        "features": features,
        "knn": knn,
    }
    Console().print(as_table(features, knn))
    print(f"written to {write_results('evaluation', goals, details, args.out)}")


def measure_extraction(data: Path, backbone: str, num_images: int, rounds: int, num_threads: int) -> dict[str, Any]:
    """Medians of CPU milliseconds an image, and of the rounds' ratios."""
    index = build_index(DataConfig(path=str(data / "imagenet-sample/parquet/train-*.parquet")))
    groups = next(list(range(num)) for num in range(1, index.num_groups + 1) if index.group_rows[:num].sum() >= num_images)
    num_rows = int(index.group_rows[groups].sum())
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name=backbone))[0]
    job = ExtractionJob(encoder, index, Preprocessing(EvaluationView(SIZE_PX), MEAN, STD))
    extractor = Extractor(job, torch.device("cpu"), num_threads)
    bare_encoder = encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    sizes = [min(BATCH_SIZE, num_rows - start) for start in range(0, num_rows, BATCH_SIZE)]
    batches = [torch.randn(size, 3, SIZE_PX, SIZE_PX).to(memory_format=torch.channels_last) for size in sizes]

    def decoding() -> None:
        for _ in KeptImages(max_bytes=0).batches(job, groups, num_threads, []):
            pass

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            bare_encoder(batch)

    forms: dict[str, Callable[[], object]] = {"whole": lambda: extractor.portion(groups), "decoding": decoding, "bare": bare}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with evaluation_mode(bare_encoder):
        for number in range(rounds + 1):
            order = list(forms)
            for name in order[number % 3 :] + order[: number % 3]:
                began = time.process_time()
                forms[name]()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - began)
    ratios = [
        (whole - decode) / bare_s for whole, decode, bare_s in zip(seconds["whole"], seconds["decoding"], seconds["bare"], strict=True)
    ]
    milliseconds = {f"{name}_ms": 1000 * statistics.median(taken) / num_rows for name, taken in seconds.items()}
    return {"images": num_rows, **milliseconds, "ratio": statistics.median(ratios), "ratios": ratios}


def measure_knn(rounds: int) -> dict[str, Any]:
    """The median CPU-seconds of one search."""
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(num, 512, generator=generator).numpy() for num in (50_000, 10_000))
    labels = torch.randint(0, 10, (50_000,), generator=generator).numpy()
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        list(knn_votes(train, labels, test, 200, 0.1, torch.device("cpu")))
        seconds.append(time.process_time() - began)
    return {"cpu_s": statistics.median(seconds), "all_cpu_s": seconds}


def as_table(features: dict[str, dict[str, Any]], knn: dict[str, Any]) -> Table:
    table = Table(title=f"CPU milliseconds an image, {SIZE_PX} px, batch {BATCH_SIZE}; kNN: {knn['cpu_s']:.1f} CPU-s (goal {KNN_GOAL_S:g})")
    for column in ("encoder", "whole", "decoding", "bare", "(whole - decoding) / bare (<= 1.1)"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for name, figures in features.items():
        table.add_row(name, *(f"{figures[f'{form}_ms']:.2f}" for form in ("whole", "decoding", "bare")), f"{figures['ratio']:.3f}")
    return table


if __name__ == "__main__":
    main()
