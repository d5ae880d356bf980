"""What is measured of a model: recall, likelihood, fluency, reasoning; and the names of all metrics.

A new metric is named in ``metrics.py`` and computed in one of the other files. May import: base, facts, decoders.
"""
