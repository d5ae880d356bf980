"""The scores of a model: recall, likelihood, fluency and reasoning; and the names of all metrics.

A new metric is named in ``metrics.py`` and computed in another file here. May import: base, facts, decoders.
"""
