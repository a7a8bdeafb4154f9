"""Libraries that report their use to their makers, told not to by what they read from the environment.

| variable | who reads it | what it stops |
|---|---|---|
| ORT_DISABLE_TELEMETRY | onnxruntime 1.31 and newer | a device id in the home folder, posts to its vendor: by default |
| HF_HUB_DISABLE_TELEMETRY | huggingface_hub and all that stand on it | counts of use, on by default |
| MLFLOW_DISABLE_TELEMETRY | mlflow | counts of use, by default from 3.2 |
| DO_NOT_TRACK | many, among them huggingface_hub and mlflow | the same by a common word |
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

OF_ONNXRUNTIME = "ORT_DISABLE_TELEMETRY"
TELEMETRY_OFF = {
    OF_ONNXRUNTIME: "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}


def no_telemetry(*names: str) -> None:
    """Switch the telemetry of libraries off, for this process and those it starts; before they are imported.

    `names` of TELEMETRY_OFF, all of them when none is given: an application that uses one library of ours keeps the
    rest of its environment. What the user set stays: it is the user's word.
    """
    for name in names or TELEMETRY_OFF:
        os.environ.setdefault(name, TELEMETRY_OFF[name])


@contextmanager
def no_ipv6_probe() -> Iterator[None]:
    """Import inside what imports urllib3, which else opens an internet socket to see whether the machine has IPv6.

    Nothing would be sent; but who watches a process that is to be offline sees a socket and has to ask.
    """
    import socket  # here, since every command imports this module to switch telemetry off

    there = socket.has_ipv6
    socket.has_ipv6 = False
    try:
        yield
    finally:
        socket.has_ipv6 = there
