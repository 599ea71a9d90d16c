"""The balancer: which VMs had better be elsewhere, why, and whether that pays; shown, or done like anybody's moves."""
