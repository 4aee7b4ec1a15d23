"""Energy models, their losses and task, and the weights that ship with the package."""
