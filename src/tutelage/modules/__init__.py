"""Modules that programs call: symbolic ones, embedded networks, and a user's own."""
