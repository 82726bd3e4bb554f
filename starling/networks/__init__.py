"""Networks: described in one file, built for torch in another, and run by numpy alone where they are small.

Importing this package loads no torch: an actor with an MLP never needs it.
"""

from starling.networks.description import Dueling, Linear, Lone, Lstm, Mlp, Moments, NatureCnn, Network, state_specs

__all__ = ["Dueling", "Linear", "Lone", "Lstm", "Mlp", "Moments", "NatureCnn", "Network", "state_specs"]
