"""Modules that programs call: symbolic ones, toy networks, and a user's own."""
