"""What the editing methods share: keys, second moments C, target values z*, the least-squares system.

May import: base, facts, decoders.
"""
