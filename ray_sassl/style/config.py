"""The config of style augmentation (SASSL); `augment.py` says what it is. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig
from ray_sassl.style.bank import StyleBank
from ray_sassl.views.recipes import ordered

Share = Annotated[float, Field(ge=0, le=1)]
ShareInterval = Annotated[tuple[Share, Share], AfterValidator(ordered)]


class SasslConfig(FrozenConfig):
    """When and how strongly views are stylized; the defaults are those of the paper (section 4)."""

    views: Literal["left", "right", "both", "small", "all"] = "left"
    """The views that may be stylized: one of the two large views, or `both`; with multi-crop also the local crops (`small`), or `all`."""
    prob: Share = 0.8
    """Chance that a view is stylized (p)."""
    alpha: ShareInterval = (0.1, 0.3)
    """Feature blending: the share of the style's code in the mixed code, uniform in this interval."""
    beta: ShareInterval = (0.1, 0.3)
    """Image blending: the share of the stylized image in the output, uniform in this interval."""
    style_source: Literal["in_batch", "bank", "gaussian"] = "in_batch"
    """Where styles come from: `in_batch`, the same view of another image of the block; `bank`, a style of the bank; `gaussian`, a draw from
    the Gaussian with the mean and covariance of the bank's codes."""
    bank: Annotated[str | None, LocalPath()] = None
    """Path or URI of a style bank made by `ray-sassl stylize bank`; every node must have access to it."""

    @model_validator(mode="after")
    def _bank_where_it_is_used(self) -> Self:
        if self.style_source != "in_batch" and self.bank is None:
            raise ValueError(f"style_source={self.style_source!r} takes its styles from a bank; set sassl.bank to its file")
        if self.style_source == "in_batch" and self.bank is not None:
            raise ValueError(
                "bank has no effect with style_source='in_batch'; set style_source='bank' or 'gaussian', or leave the bank out"
            )
        return self

    def load_bank(self, bundle_id: str | None = None) -> StyleBank | None:
        """The style bank, if styles come from one.

        Args:
            bundle_id: The code space that the bank's codes must belong to; not checked if not given.
        """
        return None if self.bank is None else StyleBank.load(self.bank, bundle_id)

    def stylizes(self, view: int) -> bool:
        """Whether view number `view` (0 left, 1 right, local crops from 2 on) may be stylized."""
        kind = ("left", "right", "small")[min(view, 2)]
        return self.views in ("all", kind) or (self.views == "both" and kind != "small")
