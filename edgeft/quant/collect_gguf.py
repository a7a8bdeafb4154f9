"""The importance matrix of a GGUF file, collected in llama.cpp; no torch, no model folder.

The same products as in llama.cpp's `tools/imatrix/imatrix.cpp` are looked at: `MUL_MAT` and `MUL_MAT_ID` with a
weight of a layer.
"""

from pathlib import Path

import numpy as np

from edgeft.console import Log
from edgeft.quant.calibration import Calibration, read_calibration
from edgeft.quant.imatrix import Collector, Imatrix
from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama_eval import Node, WatchedLlama

LAYERS, OUTPUT, EMBEDDING = "blk.", "output.weight", "token_embd.weight"
PRODUCT, EXPERT_PRODUCT = "MUL_MAT", "MUL_MAT_ID"


def importance_of_file(
    path: Path,
    *,
    examples: Path | None,
    text: Path | None,
    max_tokens: int,
    chunk_size: int,
    seed: int = 0,
    process_output: bool = False,
    n_threads: int | None = None,
    log: Log,
) -> Imatrix:
    """The importance matrix of the GGUF file `path`; arguments as of `importance_of_folder` in `collect`.

    Raises DataError for files that cannot be used, ModelError for a file without chat template (given
    `examples`) or whose activations overflow, RuntimeFault when llama.cpp refuses it.
    """
    check_gguf(path)
    with WatchedLlama(path, n_ctx=chunk_size, n_threads=n_threads) as model:
        calibration = file_calibration(
            model, examples=examples, text=text, max_tokens=max_tokens, chunk_size=model.n_ctx, seed=seed
        )
        return collect_from_file(model, calibration, chunk_size=model.n_ctx, process_output=process_output, log=log)


def file_calibration(
    model: WatchedLlama, *, examples: Path | None, text: Path | None, max_tokens: int, chunk_size: int, seed: int = 0
) -> Calibration:
    """`read_calibration` with the file's own tokenizer and chat template."""
    bos = model.special_id("bos")
    return read_calibration(
        examples=examples,
        text=text,
        encode=lambda messages, tools: model.tokenize(model.render(messages, tools=tools, add_generation_prompt=False)),
        tokenize=model.tokenize,
        bos=bos if model.tokenize("", add_special=True)[:1] == [bos] else None,
        max_tokens=max_tokens,
        chunk_size=chunk_size,
        seed=seed,
    )


def collect_from_file(
    model: WatchedLlama, calibration: Calibration, *, chunk_size: int, process_output: bool = False, log: Log
) -> Imatrix:
    """Run every sequence of `calibration` and add up the squares of what each weight is multiplied with."""
    collector = Collector()
    wanted = (LAYERS, OUTPUT, EMBEDDING) if process_output else (LAYERS,)

    def wants(node: Node) -> bool:
        if node.op not in (PRODUCT, EXPERT_PRODUCT):
            return False
        weight, inputs = node.sources()[:2]
        return weight.name.startswith(wanted) and inputs.is_float32

    with log.progress("importance matrix", calibration.n_tokens, "tokens") as progress:
        done = 0
        for sequence in calibration.sequences:
            model.watch(sequence, wants, lambda node: _add(collector, node))
            done += len(sequence)
            progress.update(done)
    return collector.imatrix(calibration.datasets, chunk_size)


def _add(collector: Collector, node: Node) -> None:
    weight, inputs = node.sources()[:2]
    values = inputs.array()
    if node.op == PRODUCT:
        rows = values.reshape(-1, values.shape[-1])
        collector.add(weight.name, np.square(rows, dtype=np.float64).sum(axis=0), len(rows))
        return
    chosen = node.sources()[2].indices()[0, 0]  # (T, K)
    # (T, K or 1, C): one input for every expert of a token, or one for each of them.
    states = np.broadcast_to(values[0], (*chosen.shape, values.shape[-1]))
    n_experts = weight.shape[1]
    for expert in range(n_experts):
        rows = states[chosen == expert]
        squares = np.square(rows, dtype=np.float64).sum(axis=0)
        collector.add(weight.name, squares, len(rows), (expert, n_experts))
