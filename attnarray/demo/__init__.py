"""The date-translation demo: dates written in many languages, translated to ISO 8601 by attention."""

# The values of --attention, described in demo/mechanisms.py; here, so that --help imports nothing else.
ATTENTIONS = (
    *("multi-head", "dot-product", "scaled", "luong-dot", "luong-general", "luong-concat"),
    *("additive", "location", "pairwise", "convolutional", "recurrent"),
    *("hard", "sparsemax", "local", "relative", "rotary", "linear", "gated-delta"),
)
