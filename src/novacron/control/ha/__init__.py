"""High availability: from a node's silence to its VMs running elsewhere, and who does what is decided."""
