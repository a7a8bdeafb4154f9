"""Where an ONNX folder first leaves the model folder it was made from.

Looked at in the order in which one explains the next: where it runs, the ids of prompts, the tables of angles, the
weights, and then what is computed inside.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.export.folder import read_folder
from edgeft.export.onnx.export import lay_out_decoder
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.parity.bisect_prompts import prompt_findings
from edgeft.parity.finding import Finding
from edgeft.parity.forms import Prompt
from edgeft.parity.onnx_form import precision_of
from edgeft.parity.onnx_values import cases, value_findings
from edgeft.parity.onnx_weights import weight_findings
from edgeft.parity.watched_onnx import WatchedOnnx
from edgeft.runtime.onnx_file import find_file
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary
from edgeft.training.models import load_model, load_tokenizer


def bisect_onnx(
    model_dir: Path,
    path: Path,
    prompts: Sequence[Prompt],
    log: Log,
    *,
    providers: Sequence[str] = (),
    n_threads: int | None = None,
) -> Finding | None:
    """The first place where the ONNX file or folder `path` is not the model of `model_dir`; None when there is none.

    `prompts` (at least one) are rendered; the longest is run. `providers` are the execution providers it is meant to
    run on. Raises ModelError for a folder that cannot be exported or a file that must not be loaded, RuntimeFault
    when onnxruntime refuses it though its weights are as they should be.
    """
    layout, decoder = lay_out_decoder(read_folder(model_dir))
    rules = onnx_rules(layout.rules)
    graph = WatchedOnnx(path, n_threads=n_threads, providers=providers)
    tokenizer, vocabulary = load_tokenizer(model_dir), OnnxVocabulary(find_file(path)[1])
    sequences: list[list[int]] = []

    def computed() -> Iterator[Finding]:
        reference: Any = load_model(model_dir).eval()
        tensors = {name: rule.sources for name, rule in rules.items()}
        tried = cases(max(sequences, key=len), decoder.n_context)
        yield from value_findings(graph, reference, tensors, tried, precision_of(graph.nodes, half=graph.is_half()))

    findings = chain(
        _provider_findings(graph, providers),
        prompt_findings(tokenizer, vocabulary, prompts, sequences, runtime="onnxruntime", template="chat_template"),
        _table_findings(graph, decoder.n_context),
        weight_findings(graph, rules, layout.checkpoint, log),
        computed(),
    )
    return next(findings, None)


def _provider_findings(graph: WatchedOnnx, wanted: Sequence[str]) -> Iterator[Finding]:
    """onnxruntime passes over a provider that it cannot start, and says so nowhere but in its log."""
    found = graph.providers()
    if wanted and found[0] != wanted[0]:
        message = f"it is meant to run on {wanted[0]}, but runs on {found[0]} (onnxruntime here has {', '.join(found)})"
        yield Finding("provider", found[0], message)


def _table_findings(graph: WatchedOnnx, n_context: int) -> Iterator[Finding]:
    """Tables of angles that end before the context does."""
    places: Mapping[str, int] = {"RotaryEmbedding": 2, "GroupQueryAttention": 7}
    for node in graph.nodes:
        at = places.get(node.op_type)
        name = node.input[at] if at is not None and at < len(node.input) else ""
        if name in graph.initializers and (n_rows := graph.initializers[name].dims[0]) < n_context:
            message = f"{name} has the angles of {n_rows} positions, the context {n_context}; {node.name} reads it"
            yield Finding("tensor", name, message)
