"""Guests to read and to run: `kernel = "guest_sdk/examples/hello.py:Hello"` in a configuration, or create them from Python."""
