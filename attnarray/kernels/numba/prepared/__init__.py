"""Prepared models: weights packed ahead, and programs of kernel calls that one compiled loop runs."""
