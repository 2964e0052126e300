"""Where frames come from: image and video files, folders, cameras, network streams, a drawn scene.

::

    with sdk.open_source("video.mp4") as source:
        for frame in source:
            frame.image, frame.index, frame.capture_ns
"""

from .images import IMAGE_SUFFIXES, read_image
from .opening import open_source
from .source import Source, redact
from .videos import VIDEO_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "Source", "open_source", "read_image", "redact"]
