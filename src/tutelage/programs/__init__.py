"""Visual programs: their languages, the scheduler that runs them, and their traces. Imports no torch."""
