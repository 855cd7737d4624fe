"""Synthetic scenes: seeded procedural scenes, their pictures, their questions, and the study's tasks."""
