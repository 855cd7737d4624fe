"""Published teacher-to-student systems: one file a system; the registry finds them by listing this folder."""
