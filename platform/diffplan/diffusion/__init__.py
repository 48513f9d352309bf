"""The core: noise schedules, denoisers, constraints, guides and samplers. Torch only."""
