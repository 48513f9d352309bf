"""Networks: raw modules that know nothing of diffusion."""
