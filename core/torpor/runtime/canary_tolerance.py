"""Warns of a canary whose tolerance is so wide that it notices little."""

from __future__ import annotations

from torpor.telemetry.events import log

__all__ = ["warn_of_wide"]


def warn_of_wide(tolerance: float, wide: float, *, deployment: str, question: str) -> None:
    """Log a warning if a tolerance is wide: equal questions got answers that lie far apart, and a damage may hide among them.

    Args:
        tolerance: learnt before the sleep.
        wide: the least that is.
        deployment: its name.
        question: what was asked.
    """
    if tolerance >= wide:
        detail = (
            f"equal questions got answers so far apart that a difference up to {tolerance:.2g} will pass after a wake; look for an "
            "option that makes the engine's numbers repeat"
        )
        log("warning", "canary_tolerance_wide", deployment=deployment, question=question, detail=detail)
