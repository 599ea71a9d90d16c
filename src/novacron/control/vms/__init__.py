"""VMs: routes ask, the service decides and records, the reconciler has it done."""
