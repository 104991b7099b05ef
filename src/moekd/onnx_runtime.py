"""onnxruntime as all of moekd imports it: silent."""

from __future__ import annotations

import os
from typing import Any


def load() -> Any:
    """Return the module onnxruntime, imported so that it reports nothing to anybody.

    From version 1.29 its builds for Linux and macOS send facts about the model and the machine to Microsoft and keep an
    id of the machine in the user's folder for caches, unless this variable is set before the import. Who sets it to 0
    has decided otherwise.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
