"""The meter in other people's training loops: each module is a few lines over one library."""
