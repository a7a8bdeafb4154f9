"""How fast torch multiplies bfloat16 and float32 matrices on this machine: measured once, in a child process."""

import sys

from edgeft.bench.remembered import Probe

PRODUCTS = Probe(
    "products",
    (sys.executable, "-m", "edgeft.preflight.products"),
    {"bfloat16", "float32"},
    "matrix products",
    "is torch in order?",
)
"""Fields are FLOP/s of one thread."""
