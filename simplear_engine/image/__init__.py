"""Pictures to visual tokens and back: discrete image tokenizers of the Cosmos kind, without a framework."""

from simplear_engine.image.config import TokenizerConfig
from simplear_engine.image.tokenizer import CosmosTokenizer

__all__ = ["CosmosTokenizer", "TokenizerConfig"]
