"""The lab: a generated world of facts and tasks, and the small decoder that is trained on it.

May import: base, facts, decoders, evaluation.
"""
