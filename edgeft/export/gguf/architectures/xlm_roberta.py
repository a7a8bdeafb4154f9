"""XLMRobertaModel (multilingual E5, BGE-M3) and its classifier: RoBERTa with another tokenizer."""

from edgeft.export.gguf.architectures.roberta import ARCHITECTURE

__all__ = ["ARCHITECTURE"]
