"""The exercises: a module for each, with its text, solution, hints and known mistakes."""
