"""Storage pools: routes ask, the service decides and records, the prober asks every node whether it reaches them."""
