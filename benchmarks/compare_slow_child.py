"""The child of `edgeft compare` with a model that computes every twentieth token of an answer twice."""

import sys
from typing import Any

import llama_cpp

from edgeft import runtime
from edgeft.bench.compare_worker import main

EVERY = 20


def load_slow(path: str, **settings: Any) -> runtime.Model:
    """The model of `path`, slowed down: the token is taken out of the cache and decoded again."""
    model: Any = runtime.load(path, **settings)
    decode, decoded = model._decode, 0

    def decode_twice(ids: Any, n_logits: int) -> Any:
        nonlocal decoded
        logits = decode(ids, n_logits)
        if len(ids) == 1:
            decoded += 1
            if decoded % EVERY == 0:
                model._n_past -= 1
                llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(model._context), 0, model._n_past, -1)
                logits = decode(ids, n_logits)
        return logits

    model._decode = decode_twice
    return model


if __name__ == "__main__":
    sys.exit(main(load_slow))
