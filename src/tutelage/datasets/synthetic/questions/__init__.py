"""The kinds of questions about synthetic scenes, one file a kind."""
