"""Attacks on washed models, one file each: whether the facts are gone, or only no longer said.

May import: base, facts, decoders, evaluation, and what gradient methods share (tuning).
"""
