"""GPT in the shapes of GPT-2 and LLaMA."""

from attnarray.models.gpt.cache import GptCache
from attnarray.models.gpt.model import Gpt
from attnarray.models.gpt.names import gpt2_names, llama_names

__all__ = ["Gpt", "GptCache", "gpt2_names", "llama_names"]
