"""Published teacher-to-student systems: one file a system, named as it; the registry finds them by listing this folder."""
