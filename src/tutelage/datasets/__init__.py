"""Tasks as plain data: readers, official metrics, and the intervals that stand beside every figure.

Nothing here knows of programs, modules or torch. A reader checks what it reads and streams what is large.
"""
