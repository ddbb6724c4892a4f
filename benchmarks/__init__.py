"""Commands that print the figures this project claims."""
