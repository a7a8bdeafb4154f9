"""The NVIDIA GPU that torch would train on, asked of the driver and not of torch, whose import takes seconds."""

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API (cuda.h)."""


def training_gpu() -> tuple[int, int] | None:
    """Compute capability (major, minor) of the GPU torch would train on; None where it trains on the processor.

    That is the first GPU the driver shows (`CUDA_VISIBLE_DEVICES` is heeded), for a torch built for CUDA.
    """
    return compute_capability() if torch_knows_cuda() else None


def torch_knows_cuda(torch_folder: Path | None = None) -> bool:
    """Whether the installed torch (in `torch_folder`) is built for CUDA, by its own version.py."""
    spec = find_spec("torch") if torch_folder is None else None
    folder = Path(spec.origin).parent if spec is not None and spec.origin else torch_folder
    try:
        text = "" if folder is None else (folder / "version.py").read_text("utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b[^=\n]*=\s*['\"]\d", text, re.MULTILINE) is not None


def compute_capability() -> tuple[int, int] | None:
    """That of the driver's first GPU; None without a driver or a GPU."""
    driver = _driver()
    if driver is None or driver.cuInit(0):
        return None
    device, major, minor = (ctypes.c_int(0) for _ in range(3))
    if driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute, value in ((MAJOR, major), (MINOR, minor)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return major.value, minor.value


def _driver() -> ctypes.CDLL | None:
    for name in DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
