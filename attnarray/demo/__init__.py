"""The date-translation demo: dates written in many languages, translated to ISO 8601 by attention."""
