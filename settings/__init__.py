"""The settings of a run and of an audit: typed configuration, its keys, its help."""
