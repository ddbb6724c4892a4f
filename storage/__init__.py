"""Whole-or-nothing files by path or URL, and tensors in files."""
