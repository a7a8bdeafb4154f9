"""How good and how fast a model file is, and whether that is good enough.

`file.bench_file` measures a file, `gate.judge` compares measurements with budgets. Needs numpy and a runtime
backend, never torch: this package also works on the device the file is made for.
"""
