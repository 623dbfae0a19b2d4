"""A discrete-event simulation of the line decode -> stylize -> train, which knows nothing of the plan's formulas.

Blocks of images are decoded by servers, wait in a bounded room, are stylized by servers, wait in another bounded room, and are taken by
trainers that begin each step together and end it when the last one does. Service times are log-normal.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """Rates in images a second of one server; coefficients of variation of a block's, or a step's, time."""

    decoders: int
    decode_rate: float
    stylizers: int
    stylize_rate: float
    trainers: int
    train_rate: float
    global_batch: int
    block: int = 64
    decode_cv: float = 0.35
    stylize_cv: float = 0.1
    train_cv: float = 0.02


def simulate(line: Line, steps: int = 300, seed: int = 0) -> float:
    """Images a second that are trained on, after a third of the steps for filling up."""
    draws = np.random.default_rng(seed)
    room = 4 * max(line.decoders, line.stylizers, math.ceil(line.global_batch / line.block))
    decoding = stylizing = 0
    decoded = 0  # blocks that wait for a stylizer, or for a trainer where there is none
    ready = 0.0  # images that wait for the trainers
    is_training = False
    now, done, measured_from = 0.0, 0, (0.0, 0)
    events: list[tuple[float, int, str]] = []
    number = 0

    def later(mean: float, cv: float, what: str) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (now + _log_normal(draws, mean, cv), number, what))

    def start() -> None:
        nonlocal decoding, stylizing, decoded, ready, is_training, number
        if not is_training and ready >= line.global_batch:
            ready -= line.global_batch
            is_training = True
            mean = line.global_batch / line.trainers / line.train_rate
            longest = max(_log_normal(draws, mean, line.train_cv) for _ in range(line.trainers))
            number += 1
            heapq.heappush(events, (now + longest, number, "train"))
        while line.stylizers and stylizing < line.stylizers and decoded and stylizing * line.block + ready < room * line.block:
            decoded -= 1
            stylizing += 1
            later(line.block / line.stylize_rate, line.stylize_cv, "stylize")
        waiting = decoded if line.stylizers else ready / line.block
        while decoding < line.decoders and decoding + waiting < room:
            decoding += 1
            later(line.block / line.decode_rate, line.decode_cv, "decode")

    start()
    while done < steps:
        now, _, what = heapq.heappop(events)
        if what == "decode":
            decoding -= 1
            if line.stylizers:
                decoded += 1
            else:
                ready += line.block
        elif what == "stylize":
            stylizing -= 1
            ready += line.block
        else:
            is_training = False
            done += 1
            if done == steps // 3:
                measured_from = (now, done)
        start()
    return (done - measured_from[1]) * line.global_batch / (now - measured_from[0])


def _log_normal(draws: np.random.Generator, mean: float, cv: float) -> float:
    sigma = math.sqrt(math.log1p(cv**2))
    return float(mean * math.exp(sigma * draws.standard_normal() - sigma**2 / 2))
