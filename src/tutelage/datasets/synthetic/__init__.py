"""The embedded world: seeded procedural scenes, their pictures, their questions, and the study's tasks."""
