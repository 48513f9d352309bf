"""The core: noise schedules, denoisers, constraints, guides and samplers. Depends on torch only."""
