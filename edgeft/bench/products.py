"""How fast torch multiplies bfloat16 and float32 matrices on this machine: measured once, in a child process."""

import sys

from edgeft.bench.remembered import Probe

PRODUCTS = Probe(
    "products",
    (sys.executable, "-m", "edgeft.preflight.products"),
    {"bfloat16", "float32"},
    "matrix products",
    "is torch in order?",
    timeout_s=60.0,  # torch takes seconds to load, and what is found decides how a model is trained
)
"""Fields are FLOP/s of one thread."""
