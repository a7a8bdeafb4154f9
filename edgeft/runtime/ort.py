"""The one door to onnxruntime: its telemetry is off before it is imported.

onnxruntime 1.31 writes a device id into the home folder when it is imported and reports sessions to its vendor, unless
ORT_DISABLE_TELEMETRY is set before. Whoever needs onnxruntime writes `from edgeft.runtime.ort import onnxruntime`, and
`imported` for a part of it or for a package that stands on it; a test looks that nobody goes another way.
"""

import os
from importlib import import_module
from typing import Any

from edgeft.machine.silence import OF_ONNXRUNTIME, no_telemetry

no_telemetry(OF_ONNXRUNTIME)
import onnxruntime  # noqa: E402  the line above has to come first

if os.environ[OF_ONNXRUNTIME].lower() in ("1", "true", "on", "yes"):
    # An application may have imported onnxruntime before us: what has begun ends here.
    onnxruntime.disable_telemetry_events()


def imported(name: str) -> Any:
    """The module `name` of onnxruntime (`onnxruntime.quantization`) or on top of it (`onnxruntime_genai`)."""
    return import_module(name)
