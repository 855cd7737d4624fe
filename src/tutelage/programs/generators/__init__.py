"""Where programs come from: stored files, a grammar, functional programs of GQA, and language models."""
