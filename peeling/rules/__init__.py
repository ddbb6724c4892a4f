"""What a gradient determines at the values of a network's graph, derived rule by rule."""
