"""Tables of scores."""

from __future__ import annotations

from rich.table import Table

from ray_sassl.evaluation import Evaluation, Score


def scores_table(title: str, found: dict[str, dict[str, Evaluation]]) -> Table:
    """One row per score and one column per encoder, from evaluations by protocol and encoder; several protocols get a column of names."""
    encoders = list(dict.fromkeys(name for evaluations in found.values() for name in evaluations))
    scores = [score for evaluations in found.values() for evaluation in evaluations.values() for score in evaluation.scores.values()]
    has_chance = any(score.chance is not None for score in scores)
    has_notes = any(evaluation.notes for evaluations in found.values() for evaluation in evaluations.values())
    columns = [*(["protocol"] if len(found) > 1 else []), "score", *encoders]
    columns += [*(["chance"] if has_chance else []), *(["of"] if has_notes else [])]
    table = Table(*columns, title=f"{title}, 95 % intervals in brackets", title_justify="left")
    for protocol, evaluations in found.items():
        names = dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.scores)
        notes = {name: note for evaluation in evaluations.values() for name, note in evaluation.notes.items()}
        for number, name in enumerate(names):
            by_encoder = {encoder: evaluation.scores[name] for encoder, evaluation in evaluations.items() if name in evaluation.scores}
            cells = [name, *(_cell(by_encoder[encoder]) if encoder in by_encoder else "" for encoder in encoders)]
            if has_chance:
                cells.append(next((f"{score.chance:.1%}" for score in by_encoder.values() if score.chance is not None), ""))
            if has_notes:
                cells.append(notes.get(name, ""))
            table.add_row(*([protocol if number == 0 else ""] if len(found) > 1 else []), *cells)
    return table


def _cell(score: Score) -> str:
    scale, digits, unit = (100, 2, "%") if score.is_share else (1, 4, "")
    value = f"{score.value * scale:.{digits}f}{unit}"
    if score.low is None or score.high is None:
        return value
    return f"{value} [{score.low * scale:.{digits}f}, {score.high * scale:.{digits}f}]"
