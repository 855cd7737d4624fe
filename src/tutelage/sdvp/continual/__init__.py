"""Continual learning: what keeps earlier tasks while a module is distilled."""
