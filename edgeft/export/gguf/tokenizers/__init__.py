"""The tokenizers llama.cpp has, one module a family, each read from a `tokenizer.json`.

A module gives `metadata(folder, texts)`, the `tokenizer.*` keys that are its family's own, and `limits(tokenizer)`,
the texts on which llama.cpp is known to differ and the proof therefore does not look at.
"""
