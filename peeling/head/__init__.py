"""Ways into the final layer: what its gradient determines of each image."""
