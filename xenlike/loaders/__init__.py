"""What turns a configuration's ``kernel`` into something that runs: Python guests now, machine code later."""
