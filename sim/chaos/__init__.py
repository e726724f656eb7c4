"""Many updates of simulated trucks under seeded faults, and the judgement whether all of them ended right."""
