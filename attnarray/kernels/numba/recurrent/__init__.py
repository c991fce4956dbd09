"""LSTM cells, and scores by an LSTM over the keys."""
