"""Actors: they step environment copies, act, and send unrolls."""
