"""Small models and statistics that planning uses beside the diffusion model: `diffplan calibrate` fits them."""
