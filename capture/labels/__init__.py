"""Labels read off the gradient of the final layer, by counting and by telling the images apart."""
