"""Numbers as the pages and the terminal show them: with their unit, and a dash where there is none."""

from __future__ import annotations

import math


def one_decimal(value: float) -> str:
    """``value`` with one decimal and without a unit."""
    return "∞" if value == math.inf else f"{value:.1f}"


def decibels(value: float) -> str:
    """``value`` with one decimal and its unit."""
    return f"{one_decimal(value)} dB"


def psnr_in_words(value: float | None) -> str:
    """A PSNR with its unit; a dash where there is none."""
    return "–" if value is None else "not finite" if math.isnan(value) else decibels(value)


def quality_in_words(psnr: float | None, ssim: float | None) -> str:
    """A PSNR with its unit and the SSIM beside it, as far as there are such."""
    parts = [psnr_in_words(psnr)] if psnr is not None else []
    parts += [f"{ssim:.2f}"] if ssim is not None and math.isfinite(ssim) else []
    return " · ".join(parts)


def share_in_words(value: float | None) -> str:
    """A share of 1 in percent; a dash where there is none, or none that is finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.0%}"


def share_not_rounded_up(value: float) -> str:
    """A share of 1 in percent with one decimal, which says 100 only of all."""
    return f"{math.floor(1000 * value) / 10:.1f} %" if value < 1 else "100 %"


def duration(seconds: float, decimals: int = 1) -> str:
    """Seconds below a minute, then minutes and seconds, then hours and minutes.

    Args:
        seconds: At least 0.
        decimals: Of seconds below a minute.
    """
    if seconds < 60:
        return f"{seconds:.{decimals}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
