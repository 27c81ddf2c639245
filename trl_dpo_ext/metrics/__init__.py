"""What the figures of preferences mean: torch only. Trainers add them up; `evaluation/modules` makes them metrics."""
