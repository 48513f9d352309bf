"""Networks: plain modules that do not depend on diffusion."""
