"""Where an exported file first leaves the model folder it was made from.

Looked at in the order in which one explains the next: keys, vocabulary and template, weights, the ids of prompts,
and then, where all that agrees, what is computed inside.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from edgeft.console import Log
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures import Architecture
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.vocabulary import vocabulary_metadata
from edgeft.parity.bisect_layers import MAX_TOKENS, layer_findings
from edgeft.parity.bisect_metadata import TEMPLATE, TOKENS, key_findings, vocabulary_findings
from edgeft.parity.bisect_prompts import prompt_findings
from edgeft.parity.bisect_tensors import tensor_findings
from edgeft.parity.finding import Finding
from edgeft.parity.forms import FILE_TYPE_FAMILIES, Prompt
from edgeft.runtime.gguf_format import read_header
from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from edgeft.training.models import load_tokenizer

N_LAYER_PROMPTS = 4


def bisect(
    model_dir: Path,
    path: Path,
    prompts: Sequence[Prompt],
    log: Log,
    *,
    architecture: Architecture | None = None,
    n_threads: int | None = None,
) -> Finding | None:
    """The first place where the GGUF file `path` is not the model of `model_dir`; None when there is none.

    `prompts` (at least one) are rendered and run. `architecture` replaces the one config.json names. Raises
    ModelError for a folder that cannot be exported, or a file that is none or that llama.cpp must not be given;
    RuntimeFault when llama.cpp refuses it though its keys and tensors are as they should be.
    """
    folder = read_folder(model_dir)
    layout = lay_out(folder, open_checkpoint(model_dir), architecture)
    vocabulary = vocabulary_metadata(folder, layout.n_vocab)
    header = read_header(path)
    tokens = vocabulary[TOKENS]
    assert isinstance(tokens, list)

    def computed() -> Iterator[Finding]:
        check_gguf(path)
        sequences: list[list[int]] = []
        tokenizer = load_tokenizer(folder.path)
        with LlamaVocabulary(path) as llama:
            yield from prompt_findings(tokenizer, llama, prompts, sequences, runtime="llama.cpp", template=TEMPLATE)
        everything = list(chain.from_iterable(sequences))
        family = FILE_TYPE_FAMILIES.get(header.get("general.file_type", -1), "q4")
        shown = [*sequences[:N_LAYER_PROMPTS], everything[:MAX_TOKENS]]
        yield from layer_findings(model_dir, path, layout, shown, family, log, n_threads)

    findings = chain(
        key_findings(header, layout.architecture, layout.hyperparameters),
        vocabulary_findings(header, vocabulary),
        tensor_findings(header, layout.rules, layout.checkpoint, [str(token) for token in tokens], log),
        computed(),
    )
    return next(findings, None)
