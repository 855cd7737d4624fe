"""The learned writer: a small network that writes programs for free text, trained in place on first use.

It stands here and not beside the other writers because it needs torch, the one trainer and the tasks' questions, which
``programs`` must not know.
"""
