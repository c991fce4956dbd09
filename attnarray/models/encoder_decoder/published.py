"""The families of `EncoderDecoder`."""

from attnarray.models.encoder_decoder.bart_config import BART, MARIAN
from attnarray.models.encoder_decoder.t5_config import T5

PRETRAINED = (BART, MARIAN, T5)
