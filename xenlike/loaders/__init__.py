"""What a configuration's ``kernel`` names: guests in Python, and images of machine code."""
