"""Files of PyTorch: read without executing anything in them, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sdk.errors import InputError


def read_torch_file(path: str | Path) -> Any:
    """Tensors and plain values from a file that `torch.save` wrote, in today's form or the older one, on the CPU.

    Raises:
        InputError: missing, not such a file, truncated, or one that would execute code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about odd pickles: what is wrong is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise InputError(f"there is no checkpoint {path}") from err
    except pickle.UnpicklingError as err:
        raise InputError(
            f"{path} is damaged, or holds Python objects other than tensors, which could execute code; it is not loaded"
        ) from err
    # What PyTorch's readers of zip and pickle raise over bytes that are neither.
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, zipfile.BadZipFile, struct.error) as err:
        raise InputError(f"{path} is not a PyTorch checkpoint, or it is truncated") from err


def write_torch_file(path: Path, content: Any) -> None:
    """Write under a temporary name and rename, so that a kill leaves the old file or the new one.

    Raises:
        InputError: it cannot be written, on a full disk say; the file that was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as err:  # PyTorch's own writer knows RuntimeError alone
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise InputError(f"{path} cannot be written ({reason}); is the disk full? What was there before stays") from err
    finally:
        with suppress(OSError):  # there may be no such folder
            temporary.unlink(missing_ok=True)
