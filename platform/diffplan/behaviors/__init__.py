"""What acts while data is collected. `registry.make_behavior` makes a behavior from its name."""
