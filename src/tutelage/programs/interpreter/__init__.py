"""Restricted Python: a checked syntax tree compiled to closures, with every limit a typed failure.

Nothing here imports numpy, torch or any module of the house, so that a bare child process can run it.
"""
