"""The exact stochastic adjoint, for any networks."""
