"""The least that answers a chat with llama-cpp-python's low-level functions: the peer of `edgeft.runtime`.

    python benchmarks/minimal_llama.py FILE N_CTX N_THREADS N_NEW   (the rendered prompt on stdin)

Greedy, one sequence. Prints JSON: the answer and its number of tokens.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


def main() -> None:
    path, n_ctx, n_threads, n_new = sys.argv[1], *map(int, sys.argv[2:])
    prompt = sys.stdin.read().encode()
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, 512, 512
    params.n_threads = params.n_threads_batch = n_threads
    context = llama_cpp.llama_init_from_model(model, params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    n_vocab = llama_cpp.llama_vocab_n_tokens(vocab)
    tokens = (llama_cpp.llama_token * n_ctx)()
    n = llama_cpp.llama_tokenize(vocab, prompt, len(prompt), tokens, n_ctx, False, True)
    answer: list[int] = []
    batch = llama_cpp.llama_batch_get_one(tokens, n)
    while len(answer) < n_new:
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (1, n_vocab))
        token = int(logits[0].argmax())
        if llama_cpp.llama_vocab_is_eog(vocab, token):
            break
        answer.append(token)
        tokens[0] = token
        batch = llama_cpp.llama_batch_get_one(tokens, 1)
    text = ctypes.create_string_buffer(16 * n_new)
    ids = (llama_cpp.llama_token * len(answer))(*answer)
    size = llama_cpp.llama_detokenize(vocab, ids, len(answer), text, len(text), False, False)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    print(json.dumps({"text": text.raw[:size].decode(errors="replace"), "n_new": len(answer)}))


if __name__ == "__main__":
    main()
