"""Numbers below the smallest normal one stay what they are, whatever libraries are loaded.

A library compiled with -ffast-math makes the processor flush them to zero from the moment it is loaded, for every
thread that is started later.
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json
import threading
import numpy, torch, onnxruntime, llama_cpp, tokenizers
import edgeft.runtime.encoder, edgeft.runtime.llama, edgeft.training.models

def products():
    small = numpy.array([1e-40], numpy.float32)
    numbers = torch.tensor([1e-40]) * torch.ones(1)
    matrices = torch.full((64, 64), 1e-40) @ torch.eye(64)
    return [float((small * numpy.float32(1))[0]), float(numbers[0]), float(matrices[0, 0])]

found = [products()]
thread = threading.Thread(target=lambda: found.append(products()))
thread.start()
thread.join()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_no_library_flushes_small_numbers_to_zero() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == 2
    assert all(abs(value - 1e-40) < 1e-44 for row in rows for value in row)
