"""The parts of an encoder in their order: which are not trained, and which are trained at a lower rate."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ray_sassl.process.errors import UsageError


def freeze(backbone: nn.Module, frozen: str) -> tuple[str, ...]:
    """Take the first parts of the encoder out of the training: their parameters and their statistics stay as they are.

    Args:
        backbone: Changed in place.
        frozen: "none", "stem" (what comes before the first block), "all", or the number of blocks that are frozen with the stem.

    Returns:
        The names of the frozen parts.

    Raises:
        UsageError: the encoder has fewer blocks.
    """
    if frozen == "none":
        return ()
    children = [name for name, _ in backbone.named_children()]
    blocks = list(_blocks(backbone))
    if frozen == "all":
        names = tuple(children)
    else:
        count = 0 if frozen == "stem" else int(frozen)
        if count > len(blocks):
            raise UsageError(f"backbone.freeze={frozen}, and the encoder has {len(blocks)} blocks: {', '.join(blocks) or 'none'}")
        first = blocks[0].partition(".")[0] if blocks else ""
        stem = children[: children.index(first)] if first in children else []
        names = (*stem, *blocks[:count])
    for name in names:
        backbone.get_submodule(name).requires_grad_(False)
    for parameter in backbone.parameters(recurse=False):  # a class token, a position embedding
        parameter.requires_grad_(False)
    backbone.register_forward_pre_hook(_KeepStatistics(names))
    return names


def layer_scales(backbone: nn.Module, decay: float) -> dict[str, float]:
    """By parameter, its share of the learning rate where each block has `decay` times the rate of the next one.

    What comes after the last block has the full rate, and what comes before the first is a block of its own (Bao et al. 2022, BEiT, arXiv
    2106.08254, appendix H; counted as in the official code of MAE).

    Raises:
        UsageError: the encoder has no blocks.
    """
    blocks = list(_blocks(backbone))
    if not blocks:
        raise UsageError("optim.layer_decay lowers the rate from block to block, and the encoder has no blocks that are known here")
    first = blocks[0].partition(".")[0]
    children = [name for name, _ in backbone.named_children()]
    before = set(children[: children.index(first)])
    depths = {f"{block}.": depth for depth, block in enumerate(blocks, 1)}
    scales = {}
    for name, _ in backbone.named_parameters():
        is_before = name.partition(".")[0] in before or "." not in name
        depth = 0 if is_before else next((depth for block, depth in depths.items() if name.startswith(block)), len(blocks) + 1)
        scales[name] = decay ** (len(blocks) + 1 - depth)
    return scales


def _blocks(backbone: nn.Module) -> Iterator[str]:
    """The names of the encoder's blocks in order: `layer1`, ... of ResNets, `blocks.0`, ... of transformers."""
    for name, child in backbone.named_children():
        if name in ("blocks", "stages", "features", "layers"):
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())
        elif name.startswith(("layer", "stage")):
            yield name


class _KeepStatistics:
    """Before a forward pass, puts frozen parts into evaluation mode; by name, so that a copy of the encoder does so with its own parts."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def __call__(self, module: nn.Module, inputs: object) -> None:
        for name in self.names:
            module.get_submodule(name).eval()
