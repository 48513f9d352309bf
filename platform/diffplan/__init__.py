"""diffplan: planning with diffusion on Ray."""
