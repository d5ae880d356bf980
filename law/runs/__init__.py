"""One run: its configuration, its sequence of stages, its tracker and its command line.

May import every package but reporting.
"""
