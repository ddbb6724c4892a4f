"""Everything that touches private images: the simulated client, its images, labels and defences.

The attack never imports from here: the wall between it and the private images is this folder's edge.
"""
