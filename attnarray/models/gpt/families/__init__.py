"""The families of decoders: each reads and writes a config.json and names tensors; blocks need no change."""

from attnarray.models.gpt.families.bloom import BLOOM, FALCON, MPT
from attnarray.models.gpt.families.gemma import GEMMA, GEMMA2, GEMMA3
from attnarray.models.gpt.families.gpt2 import GPT2, GPTJ
from attnarray.models.gpt.families.gpt_neox import NEOX, PHI
from attnarray.models.gpt.families.granite import GRANITE, OLMO2, SMOLLM3
from attnarray.models.gpt.families.llama import LLAMA
from attnarray.models.gpt.families.mistral import MISTRAL, MIXTRAL
from attnarray.models.gpt.families.opt import OPT
from attnarray.models.gpt.families.qwen import QWEN2, QWEN3
from attnarray.models.gpt.families.qwen_next import QWEN3_NEXT

# The first one is that of a config.json without model_type; saving takes the first one that has all options.
FAMILIES = (
    GPT2, LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, GRANITE, OLMO2, SMOLLM3, NEOX, GPTJ, PHI, OPT,
    BLOOM, MPT, FALCON, QWEN3_NEXT,
)  # fmt: skip
