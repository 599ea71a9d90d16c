"""High availability: from a node's silence to its VMs running elsewhere, as decisions alone: bar, wait, take over."""
