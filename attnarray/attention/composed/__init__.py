"""Mechanisms that are made of others."""
