"""A `tokenizer.json` as the `tokenizer.*` keys of a GGUF file: which family of llama.cpp's it is, and its tokens."""

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers import byte_level, sentencepiece, unigram, wordpiece
from edgeft.export.gguf.tokenizers.base import model_type, token_texts, token_types
from edgeft.export.gguf.tokenizers.special import special_metadata
from edgeft.runtime.template import without_generation_tags

FAMILIES = ("BPE", "Unigram", "WordPiece")


def vocabulary_metadata(folder: ModelFolder, n_vocab: int) -> Metadata:
    """The `tokenizer.*` keys for a model with `n_vocab` rows of embedding.

    A tokenizer that llama.cpp treats by the model's name also sets `general.name`. Raises ModelError when
    llama.cpp has no tokenizer that gives the same ids, when there are more tokens than rows, or when no token
    ends an answer.
    """
    kind = model_type(folder.tokenizer)
    if kind not in FAMILIES:
        raise ModelError(f"{folder.path}: a {kind} tokenizer; llama.cpp has {', '.join(FAMILIES)}")
    texts = token_texts(folder, n_vocab)
    types = token_types(folder, texts)
    if kind == "WordPiece":
        metadata = wordpiece.metadata(folder)
        texts = wordpiece.phantom_spaces(texts, types)
    elif kind == "Unigram":
        metadata = unigram.metadata(folder, texts)
    elif byte_level.is_byte_level(folder.tokenizer):
        metadata = byte_level.metadata(folder)
    else:
        metadata = sentencepiece.metadata(folder, texts)
    if len(set(texts)) < len(texts):
        twice = next(text for at, text in enumerate(texts) if text in texts[:at])
        raise ModelError(f"{folder.path}: two tokens would be {twice!r} in the file, which llama.cpp does not load")
    metadata["tokenizer.ggml.tokens"] = texts
    metadata["tokenizer.ggml.token_type"] = types
    metadata |= special_metadata(folder)
    if folder.chat_template is not None:
        metadata["tokenizer.chat_template"] = without_generation_tags(folder.chat_template)
    return metadata
