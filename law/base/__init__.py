"""What every other package uses: errors, files and caches, several processes, access to the hub.

Imports no other package of this project.
"""
