"""A simulator of ownership: the production decisions on virtual time, one thread, one seed a run."""
