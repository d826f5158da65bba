"""Neural causal abstraction in JAX: find a high-level causal model inside a trained network.

The rooms, from the ground up (a room imports only from the rooms before it):

    causal         the high-level side: causal models, counterfactual pair banks
    models         the low-level side: networks whose activations can be tapped and edited
    interventions  edits as data, bases, sites, handles, patching
    training       optimisation loop, checkpoints
    tasks          a causal model, its data and its encoding, per benchmark
    evaluation     interchange-intervention accuracy, intervals, controls
    localization   PLOT and distributed alignment search
"""

__version__ = "0.1.0"
