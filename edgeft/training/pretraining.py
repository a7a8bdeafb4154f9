"""What pre-training needs beside the loop: a tokenizer from the corpus, encoded documents, a fresh model."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from edgeft.console import Log
from edgeft.errors import DataError
from edgeft.sections import PretrainModel
from edgeft.training.batches import TokenSet
from edgeft.training.models import TEMPLATES

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def read_documents(path: Path) -> list[dict]:
    """The corpus, one {"text"} or {"messages"} a line. Raises DataError with file:line."""
    documents = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                document = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
            if not isinstance(document, dict) or not ("text" in document or "messages" in document):
                raise DataError(f'{path}:{number}: neither "text" nor "messages"')
            documents.append(document)
    return documents


def train_tokenizer(documents: list[dict], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus with ChatML tokens; ids 0, 1, 2 are the special tokens.

    Digits stand alone so that a model can copy and compare numbers it has never seen.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATES["chatml"]
    return fast


def encode_documents(documents: list[dict], tokenizer: PreTrainedTokenizerFast, max_length: int, log: Log) -> TokenSet:
    """Every document as ids, all of them learned; a text stands between two `<|endoftext|>`.

    A document longer than `max_length` is cut into pieces; nothing is dropped.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    encoded = []
    with log.progress("encode", len(documents), "documents") as progress:
        for number, document in enumerate(documents, 1):
            if "text" in document:
                ids = [end, *tokenizer.encode(document["text"], add_special_tokens=False), end]
            else:
                ids = tokenizer.encode(
                    tokenizer.apply_chat_template(document["messages"], tokenize=False),
                    add_special_tokens=False,
                )
            for at in range(0, len(ids), max_length):
                piece = ids[at : at + max_length]
                encoded.append((piece, [True] * len(piece)))
            if number % 5000 == 0:
                progress.update(number)
    return TokenSet.build(encoded)


def fresh_llama(shape: PretrainModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings; the output projections of the residual branches are
    scaled by 1/sqrt(2 layers) (Radford et al. 2019, GPT-2)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    scale = (2 * shape.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(scale)
    return model


def _texts(documents: list[dict]) -> Iterator[str]:
    for document in documents:
        if "text" in document:
            yield document["text"]
        else:
            for message in document["messages"]:
                yield message["content"]
