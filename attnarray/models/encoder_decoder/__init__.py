"""Published encoder-decoders: T5, BART, Marian."""

from attnarray.models.encoder_decoder.model import EncoderDecoder

__all__ = ["EncoderDecoder"]
