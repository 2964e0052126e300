"""What can go wrong while a model is turned into INT8."""

from __future__ import annotations

from sdk.errors import SdkError


class CalibrationError(SdkError):
    """A model or a set of photographs cannot be calibrated on."""
