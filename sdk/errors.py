"""Every error a user of the SDK can meet.

SdkError
  SpecError                 bad or missing ModelSpec
    HeadShapeError          a head is missing or has another shape than the spec says
    SpecVersionError        the spec was written by a newer CenterEdge
  BackendError              a model could not be loaded or run
    BackendUnavailable      a package that the backend needs is not installed (also an ImportError)
    EngineMismatch          an engine built for another machine, version or model
  InputError                a bad image, array or file (also a ValueError)
  SourceError               a camera, file or stream
    SourceOpenError         it could not be opened
    SourceTimeout           it delivered nothing in time
    SourceEnded             it was read after its end
  ConfigError               an option that does not exist, or two that contradict each other

Each message says what was got, what was expected and what to do.
"""

from __future__ import annotations


class SdkError(Exception):
    """Base of all errors that CenterEdge raises on purpose."""


class SpecError(SdkError):
    """A ModelSpec is missing, incomplete or contradicts itself."""


class HeadShapeError(SpecError):
    """A head that the spec names is missing, or its array has another shape."""


class SpecVersionError(SpecError):
    """The spec was written in a format that this version does not read."""


class BackendError(SdkError):
    """A model file could not be loaded, or a run failed."""


class BackendUnavailable(BackendError, ImportError):
    """A package that the backend needs is not installed."""


class EngineMismatch(BackendError):
    """An engine does not fit this machine, TensorRT version or ONNX file."""


class InputError(SdkError, ValueError):
    """An image, array or file is not what was expected."""


class SourceError(SdkError):
    """A camera, file or stream failed."""


class SourceOpenError(SourceError):
    """A source could not be opened."""


class SourceTimeout(SourceError):
    """A source delivered no frame in time."""


class SourceEnded(SourceError):
    """A source was read after its end."""


class ConfigError(SdkError):
    """An option does not exist, has a wrong value, or contradicts another."""
