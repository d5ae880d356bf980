"""The fact, the data sets that facts are read from, and general text.

A new data set is one file here. May import: base.
"""
