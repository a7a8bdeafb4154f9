"""edgeft: from chat-format JSONL to a small model file you can ship and prove."""

__version__ = "0.1.0"
