"""A Hugging Face decoder: loading it, its structure, prompts as tokens, batches, decoding, saving.

May import: base, facts.
"""
