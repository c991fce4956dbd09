"""GPT, with the architectures of GPT-2 and LLaMA."""

from attnarray.models.gpt.cache import GPTCache
from attnarray.models.gpt.model import GPT
from attnarray.models.gpt.names import gpt2_names, llama_names

__all__ = ["GPT", "GPTCache", "gpt2_names", "llama_names"]
