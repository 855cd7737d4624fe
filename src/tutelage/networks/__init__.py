"""Plain torch networks and layers that several systems share. Nothing here knows of teachers, data or programs."""
