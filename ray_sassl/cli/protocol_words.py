"""Parse the words that name protocols and change their settings: `knn linear k=20 linear.l2=grid`, or `all`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pydantic import ValidationError

from ray_sassl.config.overrides import explain, parse_override
from ray_sassl.evaluation.protocols import PROTOCOLS, ProtocolConfig
from ray_sassl.plugins import did_you_mean, load_plugin, plugin_names
from ray_sassl.process.errors import UsageError

DETECT = "detect"
ALL = "all"
"""Stands for every protocol whose images are available."""


def words_of(options: Iterable[str] | None) -> list[str]:
    """The words of an option that may be given several times, such as `--on knn,linear --on 'linear.l2=grid'`."""
    parts = (part for given in options or () for part in shlex.split(given))
    return [word for part in parts for word in ([part] if "=" in part else part.split(",")) if word]


def split_detection(words: list[str]) -> tuple[list[str], str | None, list[str]]:
    """Split off the words that begin with `detect.`: the other words, the data set to detect on if one is named, and the settings.

    Raises:
        UsageError: there are such words without `all`.
    """
    own = [word.removeprefix(f"{DETECT}.") for word in words if word.startswith(f"{DETECT}.")]
    if own and ALL not in words:
        raise UsageError(
            f"{DETECT}.{own[0]} belongs to `evaluate RUN all`; detection by itself is `ray-sassl detect RUN DATA [PATH=VALUE]...`"
        )
    boxes = next((word.removeprefix("data=") for word in own if word.startswith("data=")), None)
    return [word for word in words if not word.startswith(f"{DETECT}.")], boxes, [word for word in own if not word.startswith("data=")]


def with_all_named(words: list[str]) -> list[str]:
    """Replace `all` by the names of all protocols.

    Raises:
        UsageError: the words have `all` and the name of a protocol.
    """
    if ALL not in words:
        return words
    if named := [word for word in words if "=" not in word and word != ALL]:
        raise UsageError(f"all means every protocol, so leave out {', '.join(named)}")
    return [*plugin_names(PROTOCOLS), *(word for word in words if word != ALL)]


def parse_protocols(words: list[str]) -> tuple[list[ProtocolConfig], list[str]]:
    """The configs of the protocols that the words name, with the changes in the words, and the words that change the run's config instead.

    `k=20` changes every named protocol that has a field `k`; `knn.k=20` changes only kNN.

    Raises:
        UsageError: no protocol is named, a protocol does not exist, or the value of a field is wrong.
    """
    names = [word for word in words if "=" not in word]
    if DETECT in names:
        raise UsageError("detection has its own verb, since it needs boxes: ray-sassl detect RUN DATA [PATH=VALUE]...")
    if not names:
        known = plugin_names(PROTOCOLS)
        raise UsageError(f"name at least one protocol, or {ALL}: {', '.join(known)}")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))} is named twice")
    configs = {name: load_plugin(PROTOCOLS, name).Config for name in names}
    fields: dict[str, dict] = {name: {} for name in names}
    rest = []
    for word in (word for word in words if "=" in word):
        path, value = parse_override(word)
        first, dot, field = path.partition(".")
        if first in configs and dot:
            if field not in configs[first].model_fields:
                near = did_you_mean(field, configs[first].model_fields)
                raise UsageError(f"{first} has no field {field!r}{near}. Its fields: {', '.join(configs[first].model_fields)}.")
            fields[first][field] = value
        elif having := [name for name in names if path in configs[name].model_fields]:
            for name in having:
                fields[name][path] = value
        else:
            rest.append(word)
    protocols = []
    for name in names:
        try:
            protocols.append(configs[name](**fields[name]))
        except ValidationError as error:
            raise UsageError(f"{name}: {explain(error)}") from error
    return protocols, rest
