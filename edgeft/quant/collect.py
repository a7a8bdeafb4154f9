"""The importance matrix of a model folder, collected in torch."""

from pathlib import Path
from typing import Any

import torch

from edgeft.console import Log
from edgeft.data.rendering import chat_ids
from edgeft.quant.calibration import Calibration, read_calibration
from edgeft.quant.imatrix import Collector, Imatrix
from edgeft.quant.linear_inputs import TensorMap, linear_inputs
from edgeft.training.models import load_model, load_tokenizer

MAX_TOKENS = 32_768
CHUNK_SIZE = 512
"""llama-imatrix's context."""

OUTPUT, EMBEDDING = "output.weight", "token_embd.weight"


def importance_of_folder(
    model_dir: Path,
    tensors: TensorMap,
    *,
    examples: Path | None,
    text: Path | None,
    max_tokens: int = MAX_TOKENS,
    chunk_size: int = CHUNK_SIZE,
    seed: int = 0,
    process_output: bool = False,
    dtype: str = "float32",
    log: Log,
) -> Imatrix:
    """The importance matrix of the model folder `model_dir` over its own training conversations and general text.

    `tensors` are the matrices, by the names they get in the GGUF file. `examples` is chat JSONL rendered with the
    folder's template, answers included; see `read_calibration` for how it is mixed with `text`. The same
    arguments give the same matrix. Memory: the weights in `dtype` and the activations of one sequence; logits are
    not computed. `process_output` as in `collect_imatrix`.

    Raises DataError for files that cannot be used, ModelError for a model that cannot be loaded or overflows.
    """
    calibration = folder_calibration(
        model_dir, examples=examples, text=text, max_tokens=max_tokens, chunk_size=chunk_size, seed=seed
    )
    model = load_model(model_dir, dtype)
    return collect_imatrix(model, calibration, tensors, chunk_size=chunk_size, process_output=process_output, log=log)


def folder_calibration(
    model_dir: Path, *, examples: Path | None, text: Path | None, max_tokens: int, chunk_size: int, seed: int = 0
) -> Calibration:
    """`read_calibration` with the tokenizer and chat template of the folder. Raises DataError and ModelError."""
    tokenizer: Any = load_tokenizer(model_dir)
    around = tokenizer("", add_special_tokens=True)["input_ids"]
    return read_calibration(
        examples=examples,
        text=text,
        encode=lambda messages, tools: chat_ids(tokenizer, messages, tools),
        tokenize=lambda words: list(tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]),
        bos=tokenizer.bos_token_id if tokenizer.bos_token_id in around[:1] else None,
        max_tokens=max_tokens,
        chunk_size=chunk_size,
        seed=seed,
    )


@torch.inference_mode()
def collect_imatrix(
    model: Any,
    calibration: Calibration,
    tensors: TensorMap,
    *,
    chunk_size: int = CHUNK_SIZE,
    process_output: bool = False,
    log: Log,
) -> Imatrix:
    """Run every sequence of `calibration` through the layers of `model` and add up the squares of what each of
    `tensors` is multiplied with.

    `process_output` adds the output matrix (`output.weight`, of a tied model `token_embd.weight`), off by
    default as in llama-imatrix. Raises ModelError when an activation is not finite.
    """
    collector = Collector()

    def add(name: str, inputs: torch.Tensor, expert: tuple[int, int] | None = None) -> None:
        squares = inputs.float().square().sum(dim=0, dtype=torch.float64)
        collector.add(name, squares.cpu().numpy(), len(inputs), expert)

    model.eval()
    progress_of = log.progress("importance matrix", calibration.n_tokens, "tokens")
    with linear_inputs(model, tensors, add), progress_of as progress:
        done = 0
        for sequence in calibration.sequences:
            ids = torch.tensor([sequence], device=model.device)
            states = model.base_model(ids, use_cache=False).last_hidden_state
            if process_output:
                add(OUTPUT if OUTPUT in tensors else EMBEDDING, states[0])
            done += len(sequence)
            progress.update(done)
    return collector.imatrix(calibration.datasets, chunk_size)
