"""GradInversion as a distributed multi-agent optimisation: what an averaged gradient reveals of private images.

Read the folders in the order of the data: ``capture`` (what the server holds) -> ``priors`` and ``agents``
(one seed optimises one candidate batch) -> ``registration`` (the seeds become one consensus) -> ``coordinator``
(rounds and checkpoints) -> ``cluster`` (Ray) -> ``audit`` (what leaked).
"""

__version__ = "0.1.0"
