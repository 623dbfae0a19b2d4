"""Whether a run was worth it: its encoder beside the one that it has started from, on the same test images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray_sassl.evaluation import Evaluation
from ray_sassl.evaluation.results import STARTING_POINT, ProtocolScores
from ray_sassl.runs.pages.contrast import Contrast, contrast_of

_BETTER_IF_HIGHER = ("top1", "mean_per_class", "mean_accuracy", "AP")


def against_start(all_scores: Iterable[ProtocolScores | None]) -> list[str]:
    """A sentence for each of a run's scores that the encoder it has started from has too."""
    return [
        sentence
        for scores in all_scores
        if scores is not None and scores.start is not None
        for sentence in _sentences(scores, scores.start)
    ]


def of_evaluations(protocol: str, evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The same for an evaluation that was just made; the first is the run's own."""
    if STARTING_POINT not in evaluations:
        return []
    own, start = (
        ProtocolScores(protocol, found.scores, predictions=found.predictions, details=found.details)
        for found in (next(iter(evaluations.values())), evaluations[STARTING_POINT])
    )
    return _sentences(own, start)


def _sentences(own: ProtocolScores, start: ProtocolScores) -> list[str]:
    names = [name for name in own.scores if name in start.scores and name.endswith(_BETTER_IF_HIGHER) and not name.startswith("train")]
    return [
        f"{own.protocol} {name}: {in_words(contrast_of(name, [start], [own]), is_share=own.scores[name].is_share)} than the starting point"
        for name in names
    ]


def in_words(contrast: Contrast, *, is_share: bool) -> str:
    """Whether the second is better, by how much, with its interval; for shares in percentage points."""
    scale, digits = (100, 1) if is_share else (1, 3)
    unit = " points" if is_share else ""
    if contrast.low is None or contrast.high is None:
        return f"{'better' if contrast.value > 0 else 'not better'} ({contrast.value * scale:+.{digits}f}{unit}, no interval)"
    if contrast.verdict == "noise":
        within = f"{contrast.low * scale:.{digits}f} to {contrast.high * scale:.{digits}f}"
        return f"not better ({contrast.value * scale:+.{digits}f}{unit}, 95 % {within})"
    low, high = sorted(abs(end) * scale for end in (contrast.low, contrast.high))
    word = "better" if contrast.verdict == "higher" else "worse"
    return f"{word} by {abs(contrast.value) * scale:.{digits}f}{unit}, 95 % {low:.{digits}f} to {high:.{digits}f},"
