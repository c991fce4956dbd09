"""Models made of the layers: they load public checkpoints, train by hand-written gradients, and generate."""

from attnarray.models.audio import log_mel, read_wav
from attnarray.models.bert import BERT, BERTResult
from attnarray.models.encoder_decoder import EncoderDecoder
from attnarray.models.generation import (
    BeamResult,
    beam_search,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    stream,
    with_temperature,
)
from attnarray.models.gpt import GPT, GPTCache, gpt2_names, llama_names
from attnarray.models.prepared.bert import PreparedBERT
from attnarray.models.prepared.encoder import PreparedEncoder
from attnarray.models.prepared.gpt import PreparedGPT
from attnarray.models.pretrained import from_pretrained
from attnarray.models.sentence import SentenceEncoder
from attnarray.models.seq2seq import Seq2Seq
from attnarray.models.tokenizer import load_tokenizer
from attnarray.models.transformer import Decoder, Encoder, Transformer
from attnarray.models.transformer_xl import TransformerXL, TransformerXLResult, remembered
from attnarray.models.vision import PatchClassifier
from attnarray.models.vit import ViT, ViTResult
from attnarray.tree import shorten_reprs

__all__ = [
    "BERT",
    "GPT",
    "BERTResult",
    "BeamResult",
    "Decoder",
    "Encoder",
    "EncoderDecoder",
    "GPTCache",
    "PatchClassifier",
    "PreparedBERT",
    "PreparedEncoder",
    "PreparedGPT",
    "SentenceEncoder",
    "Seq2Seq",
    "Transformer",
    "TransformerXL",
    "TransformerXLResult",
    "ViT",
    "ViTResult",
    "beam_search",
    "draw",
    "from_pretrained",
    "generate",
    "gpt2_names",
    "keep_top_k",
    "keep_top_p",
    "llama_names",
    "load_tokenizer",
    "log_mel",
    "penalize_repetition",
    "read_wav",
    "remembered",
    "stream",
    "with_temperature",
]

shorten_reprs()


def __dir__() -> list[str]:
    return __all__
