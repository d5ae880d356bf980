"""Washing methods, one file each.

A method is a dataclass of settings with the two calls of :class:`law.methods.protocol.Method`. A new method is
one file here. May import: base, facts, decoders, editing, tuning.
"""
