"""Data at any scale: datasets read lazily, item by item, by worker processes, in views that can be replayed."""
