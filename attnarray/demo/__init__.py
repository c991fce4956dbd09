"""The date-translation demo: dates written in many languages, translated to ISO 8601 by attention."""

# What --attention may name; demo/mechanisms.py says what each is. They stand here so that asking costs no import.
ATTENTIONS = (
    *("multi-head", "dot-product", "scaled", "luong-dot", "luong-general", "luong-concat"),
    *("additive", "location", "pairwise", "convolutional", "recurrent"),
    *("hard", "sparsemax", "local", "relative", "rotary"),
)
