"""Tables and pictures of finished runs.

A new kind of table or picture is one file here. May import every other package.
"""
