"""The recurrent encoder-decoder, with any attention."""

from attnarray.models.seq2seq.model import Seq2Seq

__all__ = ["Seq2Seq"]
