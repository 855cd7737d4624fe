"""The study: the same modules under each arm, on previous, current and unseen tasks, over several seeds."""
