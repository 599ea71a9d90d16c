"""Templates: VMs to be made many times, in versions, with parameters."""
