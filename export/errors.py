"""What can go wrong while a model is exported."""

from __future__ import annotations

from sdk.errors import SdkError


class ExportError(SdkError):
    """A model cannot be exported, or the exported one does not equal it."""
