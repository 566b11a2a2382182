"""Guests to read and to run: `xenlike run` the .cfg beside each, or create them from Python."""
