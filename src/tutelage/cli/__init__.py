"""The command line: one file, one command or group of commands."""
