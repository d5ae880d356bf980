"""What the gradient methods share: the training loop, the rows it trains on, what they retain.

May import: base, facts, decoders.
"""
