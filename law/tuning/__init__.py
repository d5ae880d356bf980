"""What the gradient methods share: the training loop, the rows it trains on, the retain text.

May import: base, facts, decoders.
"""
