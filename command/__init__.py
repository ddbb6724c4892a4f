"""The command line: words to a verb, and the verbs; what answers at once imports nothing that takes time."""
