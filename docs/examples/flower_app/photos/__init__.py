"""A Flower app of the present layout: a ClientApp, a ServerApp, and the task that they share."""
