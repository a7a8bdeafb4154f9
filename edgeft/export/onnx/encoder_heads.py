"""What stands on an encoder: heads that classify texts or tokens, and the vector of a text.

Heads stay in float whatever the encoder's products are: they are small, and nothing behind them evens out a rounding.
Tasks have optimum's names. Names of tensors are transformers'.

Shapes: B texts, S tokens of the longest, D width, C classes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures._encoder import labels
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.encoder_graph import BATCH, SEQUENCE, EncoderGraph

Task = Literal["feature-extraction", "text-classification", "token-classification"]
Pooling = Literal["mean", "cls", "lasttoken"]
HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
LOGITS, HIDDEN, EMBEDDING = "logits", "last_hidden_state", "sentence_embedding"
LEAST_NORM = 1e-12
"""A shorter vector is not lengthened to 1 (`torch.nn.functional.normalize`)."""


def task_of(config: Config) -> Task:
    """What the model was trained for, by the class that config.json names."""
    for name in config.get("architectures") or ():
        for ending, task in HEADS.items():
            if name.endswith(ending):
                return task
    return "feature-extraction"


def add_outputs(graph: EncoderGraph, hidden: str, task: Task, pooling: Pooling | None, *, normalize: bool) -> None:
    """Put the outputs of `task` on the last hidden state (B, S, D).

    `logits` (B, C) or (B, S, C); for feature extraction `last_hidden_state` and, where `pooling` says how,
    `sentence_embedding` (B, D), of length 1 with `normalize`. All are float32. Raises ModelError when the checkpoint
    has no head for the task.
    """
    if task == "feature-extraction":
        _output(graph, hidden, HIDDEN, [BATCH, SEQUENCE, graph.config["hidden_size"]])
        if pooling is not None:
            pooled = pool(graph, hidden, pooling)
            vector = _normalized(graph, pooled) if normalize else pooled
            _output(graph, vector, EMBEDDING, [BATCH, graph.config["hidden_size"]])
        return
    if not graph.has("classifier.weight") and not graph.has("classifier.out_proj.weight"):
        raise ModelError(
            f"{graph.checkpoint.path}: task {task}: the model has no classification head; train one, or export it "
            "with the task feature-extraction"
        )
    n_classes = len(labels(graph.config))
    if task == "token-classification":
        logits = _token_head(graph, hidden, n_classes)
        _output(graph, logits, LOGITS, [BATCH, SEQUENCE, n_classes])
    else:
        logits = TEXT_HEADS[graph.config["model_type"]](graph, hidden, n_classes)
        _output(graph, logits, LOGITS, [BATCH, n_classes])


def pool(graph: EncoderGraph, hidden: str, pooling: Pooling) -> str:
    """One vector (B, D) a text: the first token's, the last one's, or the mean of all that are no padding."""
    node = graph.graph.node
    if pooling == "cls":
        return node("Gather", [hidden, graph.whole("zero", 0)], "pooling", axis=1)
    if pooling == "lasttoken":
        return _last_token(graph, hidden)
    weights = node("Cast", [graph.mask], "pooling.weights", to=graph.float_type)
    column = node("Unsqueeze", [weights, graph.whole("axis_2", [2])], "pooling.column")
    seen = node("Mul", [hidden, column], "pooling.seen")
    total = node("ReduceSum", [seen, graph.whole("axis_1", [1])], "pooling.total", keepdims=0)
    count = node("ReduceSum", [column, graph.whole("axis_1", [1])], "pooling.count", keepdims=0)
    return node(
        "Div",
        [total, node("Max", [count, graph.floats("least", np.ones((), np.float32))], "pooling.tokens")],
        "pooling",
    )


def _last_token(graph: EncoderGraph, hidden: str) -> str:
    """The last place where the mask is 1, wherever padding stands."""
    node = graph.graph.node
    one = graph.whole("one", 1)
    place = node("Mul", [graph.mask, node("Add", [graph.positions(), one], "pooling.from_1")], "pooling.places")
    last = node("ArgMax", [place], "pooling.last", axis=1, keepdims=1)
    return node("GatherND", [hidden, last], "pooling", batch_dims=1)


def _normalized(graph: EncoderGraph, vector: str) -> str:
    node = graph.graph.node
    length = node("ReduceL2", [vector, graph.whole("axis_1", [1])], "embedding.length", keepdims=1)
    least = LEAST_NORM if graph.float_type == TensorProto.FLOAT else float(np.finfo(np.float16).tiny)
    bound = node("Max", [length, graph.floats("least_length", np.array(least, np.float32))], "embedding.divisor")
    return node("Div", [vector, bound], "embedding")


def _bert_head(graph: EncoderGraph, hidden: str, n_classes: int) -> str:
    width = graph.config["hidden_size"]
    pooled = graph.float_linear(pool(graph, hidden, "cls"), "pooler.dense", (width, width))
    x = graph.activate(pooled, "tanh", "pooler.activation")
    return _classes(graph, x, "classifier", n_classes)


def _roberta_head(graph: EncoderGraph, hidden: str, n_classes: int) -> str:
    width = graph.config["hidden_size"]
    dense = graph.float_linear(pool(graph, hidden, "cls"), "classifier.dense", (width, width))
    return _classes(graph, graph.activate(dense, "tanh", "classifier.tanh"), "classifier.out_proj", n_classes)


def _distilbert_head(graph: EncoderGraph, hidden: str, n_classes: int) -> str:
    width = graph.config["hidden_size"]
    dense = graph.float_linear(pool(graph, hidden, "cls"), "pre_classifier", (width, width))
    return _classes(graph, graph.activate(dense, "relu", "pre_classifier.relu"), "classifier", n_classes)


def _modernbert_head(graph: EncoderGraph, hidden: str, n_classes: int) -> str:
    pooled = pool(graph, hidden, graph.config["classifier_pooling"])
    return _classes(graph, _prediction_head(graph, pooled), "classifier", n_classes)


def _token_head(graph: EncoderGraph, hidden: str, n_classes: int) -> str:
    if graph.config["model_type"] == "modernbert":
        hidden = _prediction_head(graph, hidden)
    return _classes(graph, hidden, "classifier", n_classes)


def _prediction_head(graph: EncoderGraph, x: str) -> str:
    config = graph.config
    dense = graph.float_linear(x, "head.dense", (config["hidden_size"], config["hidden_size"]))
    return graph.norm(
        graph.activate(dense, config["classifier_activation"], "head.act"), "head.norm", config["norm_eps"]
    )


def _classes(graph: EncoderGraph, x: str, module: str, n_classes: int) -> str:
    return graph.added(graph.float_linear(x, module, (n_classes, graph.config["hidden_size"])), module)


def _output(graph: EncoderGraph, value: str, name: str, shape: list[int | str]) -> None:
    graph.graph.node("Cast", [value], name, outputs=[name], to=TensorProto.FLOAT)
    graph.graph.output(name, TensorProto.FLOAT, shape)


TEXT_HEADS: dict[str, Callable[[EncoderGraph, str, int], str]] = {
    "bert": _bert_head,
    "roberta": _roberta_head,
    "xlm-roberta": _roberta_head,
    "distilbert": _distilbert_head,
    "modernbert": _modernbert_head,
}
